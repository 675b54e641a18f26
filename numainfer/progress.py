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
    callable(done, total, note="", part=0.0) or None
        The note stands beside a bar, which also shows how much of those that are not done is behind them; the caller's own callable
        gets neither.
    """
    if callable(progress):
        yield lambda done, total, note="", part=0.0: progress(done, total)
        return
    in_notebook = "ipykernel" in sys.modules
    if progress is None:
        progress = in_notebook or bool(sys.stderr and sys.stderr.isatty())
    if not progress:
        yield None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in a notebook without ipywidgets tqdm says that its bar is a plainer one
        from tqdm.auto import tqdm

        if unit is None:
            bar = tqdm(total=None, desc=label, leave=False, delay=0.2, unit="B", unit_scale=True)
        else:  # its own n would be a fraction: the counts stand in the note
            bar = tqdm(total=None, desc=label, leave=in_notebook, delay=0.2, miniters=0,
                       bar_format="{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]")  # fmt: skip

    def report(done, total, note="", part=0.0):
        bar.total = total
        if note:
            bar.set_postfix_str(f"{done}/{total} {unit}, {note}", refresh=False)
        bar.update(max(done + part - bar.n, 0))

    with bar:
        yield report
