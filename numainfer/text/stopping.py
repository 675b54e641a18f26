"""Stop strings in a stream of text: what may be shown already, what must wait, and where the text ends."""


class StopStrings:
    """Watches text that comes in pieces for the first complete stop string.

    The match that is complete first wins, that is the one whose last character comes earliest; of several that end
    there, the longest. This can be decided the moment the character arrives, so the result does not depend on how the
    text is cut into pieces. (The match that *starts* first could need text that comes after another one is complete.)

    Parameters
    ----------
    stops : str or iterable of str
        Not empty strings; none at all is fine, then all text passes through at once.

    Attributes
    ----------
    matched : str or None
        The stop string that was found.
    position : int or None
        Where it starts, in characters from the start of the text: the length of all text handed out.

    Raises
    ------
    ValueError
        A stop string is empty.
    """

    def __init__(self, stops=()):
        self._stops = (stops,) if isinstance(stops, str) else tuple(stops)
        if "" in self._stops:
            raise ValueError("stop = '': an empty string would stop everywhere; wanted at least one character")
        self._held = ""  # the longest end of the text so far that begins a stop string: all that a match can still need
        self._shown = 0
        self.matched = self.position = None

    def feed(self, piece):
        """Takes the next piece of text.

        Parameters
        ----------
        piece : str

        Returns
        -------
        str
            Text that no stop string can claim any more and that was not returned before; after a match, and in it, what
            stands before the match. Empty once a match was found.
        """
        if self.matched is not None:
            return ""
        text = self._held + piece
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            _, end, self.matched = min(found)
            self._held = ""
            self.position = self._shown + end
        else:
            end = min((self._first_beginning(text, stop) for stop in self._stops), default=len(text))
            self._held = text[end:]
        self._shown += end
        return text[:end]

    def flush(self):
        """Ends the text: nothing more will come.

        Returns
        -------
        str
            What was held back.
        """
        held, self._held = self._held, ""
        self._shown += len(held)
        return held

    @staticmethod
    def _first_beginning(text, stop):
        """The least index from which the rest of text begins stop; len(text) if there is none."""
        start = max(0, len(text) - len(stop) + 1)
        while (start := text.find(stop[0], start)) >= 0:
            if stop.startswith(text[start:]):
                return start
            start += 1
        return len(text)
