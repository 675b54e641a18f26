"""The progress bars of loading and of lists of prompts."""

import contextlib
import sys
import warnings


@contextlib.contextmanager
def progress_bar(progress, label, unit=None):
    """What to report progress to.

    Parameters
    ----------
    progress : None, bool or callable
        None: a tqdm bar where someone is watching, that is, in a notebook or when stderr is a terminal.
    label : str
    unit : str, optional
        What is counted; bytes by default.

    Yields
    ------
    callable(done, total, note="") or None
        The note stands beside a bar; the caller's own callable does not get it.
    """
    if callable(progress):
        yield lambda done, total, note="": progress(done, total)
        return
    if progress is None:
        progress = "ipykernel" in sys.modules or bool(sys.stderr and sys.stderr.isatty())
    if not progress:
        yield None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in a notebook without ipywidgets tqdm says that its bar is a plainer one
        from tqdm.auto import tqdm

        scale = {"unit": "B", "unit_scale": True} if unit is None else {"unit": f" {unit}"}
        bar = tqdm(total=None, desc=label, leave=False, delay=0.2, **scale)

    def report(done, total, note=""):
        bar.total = total
        if note:
            bar.set_postfix_str(note, refresh=done == bar.n)
        bar.update(done - bar.n)

    with bar:
        yield report
