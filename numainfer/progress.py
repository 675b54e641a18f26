"""The progress bar of a load."""

import contextlib
import sys
import warnings


@contextlib.contextmanager
def progress_bar(progress, label):
    """What to report a load's progress to.

    Parameters
    ----------
    progress : None, bool or callable
        None: a tqdm bar where someone is watching, that is, in a notebook or when stderr is a terminal.
    label : str

    Yields
    ------
    callable(done_bytes, total_bytes) or None
    """
    if callable(progress):
        yield progress
        return
    if progress is None:
        progress = "ipykernel" in sys.modules or bool(sys.stderr and sys.stderr.isatty())
    if not progress:
        yield None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in a notebook without ipywidgets tqdm says that its bar is a plainer one
        from tqdm.auto import tqdm

        bar = tqdm(total=None, desc=label, unit="B", unit_scale=True, unit_divisor=1024, leave=False, delay=0.2)

    def report(done, total):
        bar.total = total
        bar.update(done - bar.n)

    with bar:
        yield report
