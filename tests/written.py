"""Models that the tests of a file share, each written once."""

import numainfer as ni


class Written:
    """``written(name)`` is the path of a model.

    Parameters
    ----------
    folder : Path
    write : callable
        ``write(name, path)`` makes the file.
    ids : array of int
        The prompt of `logits`.
    """

    def __init__(self, folder, write, ids):
        self.folder, self.write, self.ids = folder, write, ids
        self._logits = {}

    def __call__(self, name):
        path = self.folder / f"{name}.gguf"
        if not path.exists():
            self.write(name, str(path))
        return path

    def logits(self, name):
        """After every token of the prompt, by one thread, in one step; float32 (tokens, vocabulary)."""
        if name not in self._logits:
            with ni.load(self(name), threads=1, n_batch=len(self.ids)) as model:
                self._logits[name] = model.logits(self.ids, all=True)
        return self._logits[name]
