# Binds csrc/sample.h and csrc/choose.h. Results below zero are the headers' codes; serving/sampling.py turns them into exceptions.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

cdef extern from "../csrc/sample.h":
    enum:
        NI_SAMPLE_NAN
        NI_SAMPLE_EMPTY
        NI_SAMPLE_BAD_ARGUMENT
        NI_SAMPLE_NO_MEMORY
        NI_LOGPROBS_MAX
        NI_SAMPLE_STOP
        NI_SAMPLE_LENGTH
    ctypedef struct ni_sampler_params:
        double temperature
        double top_p
        double min_p
        double repetition_penalty
        double presence_penalty
        double frequency_penalty
        int32_t top_k
        int32_t min_tokens
        int64_t max_tokens
        uint64_t seed
    ctypedef struct ni_sampler:
        pass
    ni_sampler *ni_sampler_new(const ni_sampler_params *params, int32_t n_vocab, const int32_t *prompt,
                               int64_t n_prompt, const int32_t *bias_ids, const float *bias, int32_t n_bias,
                               const int32_t *stop_ids, int32_t n_stop, int *status) nogil
    void ni_sampler_free(ni_sampler *s) nogil
    void ni_mask_logits(const float *logits, const uint32_t *mask, int32_t n, float *out) nogil
    int32_t ni_sample(ni_sampler *s, float *logits, int again, void *scratch) nogil
    int32_t ni_sampler_distribution(ni_sampler *s, float *logits, void *scratch, int32_t *ids, double *probs) nogil
    int ni_sampler_accept(ni_sampler *s, int32_t id) nogil
    double ni_sample_uniform(uint64_t seed, uint64_t position) nogil
    int32_t ni_top_logprobs(const float *logits, int32_t n_vocab, int32_t chosen, int32_t k, void *scratch,
                            int32_t *ids, float *logprobs, float *chosen_logprob, int32_t *chosen_rank) nogil

cdef extern from "../csrc/choose.h":
    ctypedef struct ni_logprob:
        float logprob
        int32_t rank, n
    ctypedef struct ni_choice:
        ni_sampler *sampler
        float *logits
        const float *own
        const uint32_t *mask
        const int32_t *proposed
        int32_t rows, n_logprobs, hold, again
        int32_t *tokens
        ni_logprob *logprobs
        int32_t *top_ids
        float *top
        int32_t n, status
    ctypedef struct ni_choosing:
        ni_choice *choices
        int64_t stride
        uint8_t *scratch
        size_t scratch_bytes
        int32_t n_vocab
        int n, next
    void *ni_choose_scratch_open(int32_t n_vocab, int n, size_t *each) nogil
    void ni_choose_scratch_close(void *scratch, size_t each, int n) nogil
    size_t ni_choose_kept_bytes(int32_t n_vocab) nogil
    void ni_choose(ni_choice *c, int64_t stride, void *scratch) nogil
    int ni_choosing_start(ni_team *t, ni_choosing *job, ni_status *st) nogil

SAMPLE_NAN = NI_SAMPLE_NAN
SAMPLE_EMPTY = NI_SAMPLE_EMPTY
LOGPROBS_MAX = NI_LOGPROBS_MAX


def sample_uniform(uint64_t seed, uint64_t position):
    """The number in [0, 1) that a sampler with this seed draws at this position of the output."""
    return ni_sample_uniform(seed, position)


def mask_logits(const float[::1] logits, const uint32_t[::1] mask, float[::1] out):
    """Copies logits to out, as -inf where the mask's bit is 0: bit i % 32 of word i / 32 is that of token i."""
    cdef int32_t n = <int32_t>logits.shape[0]
    if n < 1 or out.shape[0] != n or mask.shape[0] != (n + 31) // 32:
        raise ValueError(f"{n} logits, {mask.shape[0]} words of mask and room for {out.shape[0]}: they do not fit")
    with nogil:
        ni_mask_logits(&logits[0], &mask[0], n, &out[0])


cdef class SampleScratch:
    """Work memory for samplers over at most n_vocab logits, of so many threads; used by one call at a time."""

    cdef void *memory
    cdef readonly int32_t n_vocab
    cdef readonly int n_threads
    cdef size_t each

    def __cinit__(self, int32_t n_vocab, int n_threads=1):
        if n_vocab < 1 or n_threads < 1:
            raise ValueError(f"n_vocab = {n_vocab}, n_threads = {n_threads}: must be at least 1")
        self.n_vocab, self.n_threads = n_vocab, n_threads
        self.memory = ni_choose_scratch_open(n_vocab, n_threads, &self.each)
        if self.memory == NULL:
            raise MemoryError(f"sampling {n_vocab} logits needs {self.each} bytes of scratch for each of {n_threads} threads")

    def __dealloc__(self):
        ni_choose_scratch_close(self.memory, self.each, self.n_threads)

    @property
    def bytes(self):
        """Of memory that a team's workers keep from one job to the next, at most."""
        return self.n_threads * ni_choose_kept_bytes(self.n_vocab)


cdef class Sampler:
    """ni_sampler: the sampling state of one sequence. int32 and float32 arrays are C-contiguous.

    Attributes
    ----------
    holds : bool
        `choose` only chooses: whoever called it decides, and calls `accept` and `publish`.
    n_logprobs : int
        As of ni_choice: entries to list for each token; -1: no log-probabilities.
    token_ids : list of int
        What was published.
    logprobs : list of (token, log-probability, rank, ((token, log-probability), ...))
        Of each of them, if there are to be any.
    finish_reason : str or None
        None, "stop" or "length"; who cancels writes another.
    """

    cdef ni_sampler *sampler
    cdef readonly int32_t n_vocab
    cdef public bint holds
    cdef readonly bint greedy
    cdef public int32_t n_logprobs
    cdef readonly list token_ids, logprobs
    cdef public object finish_reason

    def __cinit__(self, int32_t n_vocab, const int32_t[::1] prompt, const int32_t[::1] bias_ids,
                  const float[::1] bias, const int32_t[::1] stop_ids, *, double temperature, int32_t top_k,
                  double top_p, double min_p, double repetition_penalty, double presence_penalty,
                  double frequency_penalty, int32_t min_tokens, uint64_t seed, int64_t max_tokens=0):
        cdef ni_sampler_params p
        cdef int status = 0
        if bias.shape[0] != bias_ids.shape[0]:
            raise ValueError(f"{bias_ids.shape[0]} bias ids for {bias.shape[0]} biases")
        cdef uint64_t mode = ni_floats_default()
        p.temperature, p.top_k, p.top_p, p.min_p = temperature, top_k, top_p, min_p
        p.repetition_penalty, p.presence_penalty = repetition_penalty, presence_penalty
        p.frequency_penalty, p.min_tokens, p.seed, p.max_tokens = frequency_penalty, min_tokens, seed, max_tokens
        self.n_vocab, self.n_logprobs, self.greedy = n_vocab, -1, temperature == 0
        self.token_ids, self.logprobs = [], []
        self.sampler = ni_sampler_new(
            &p, n_vocab, &prompt[0] if prompt.shape[0] else NULL, prompt.shape[0],
            &bias_ids[0] if bias.shape[0] else NULL, &bias[0] if bias.shape[0] else NULL, <int32_t>bias.shape[0],
            &stop_ids[0] if stop_ids.shape[0] else NULL, <int32_t>stop_ids.shape[0], &status)
        ni_floats_restore(mode)
        if status == NI_SAMPLE_NO_MEMORY:
            raise MemoryError(f"no memory for a sampler over {n_vocab} logits")
        if status != 0:
            raise ValueError(f"a sampler's setting is out of range, or an id is outside [0, {n_vocab})")

    def __dealloc__(self):
        ni_sampler_free(self.sampler)

    cdef int check(self, Py_ssize_t n_logits, SampleScratch scratch) except -1:
        if n_logits != self.n_vocab or scratch.n_vocab < self.n_vocab:
            raise ValueError(f"{n_logits} logits and scratch for {scratch.n_vocab}: the sampler is for {self.n_vocab}")
        return 0

    def distribution(self, float[::1] logits, SampleScratch scratch not None, int32_t[::1] ids, double[::1] probs):
        """Fills ids and probs (n_vocab each); the number of tokens, or SAMPLE_NAN or SAMPLE_EMPTY."""
        cdef int32_t count
        self.check(logits.shape[0], scratch)
        self.check(min(ids.shape[0], probs.shape[0]), scratch)
        cdef uint64_t mode
        with nogil:
            mode = ni_floats_default()
            count = ni_sampler_distribution(self.sampler, &logits[0], scratch.memory, &ids[0], &probs[0])
            ni_floats_restore(mode)
        return count

    def accept(self, int32_t token):
        """Counts a token; the reason for which the output ends with it, or None."""
        cdef int status = ni_sampler_accept(self.sampler, token)
        if status < 0:
            raise ValueError(f"token id {token}: outside [0, {self.n_vocab})")
        return _reason(status)

    def publish(self, token, logprob=None, reason=None):
        """Makes a token that was accepted one of the output, at once: no signal handler and no other thread sees half of it."""
        if logprob is not None:
            self.logprobs.append(logprob)
        self.token_ids.append(token)
        if reason is not None:
            self.finish_reason = reason


cdef object _reason(int status):
    return "stop" if status == NI_SAMPLE_STOP else "length" if status == NI_SAMPLE_LENGTH else None


cdef object _logprob(const ni_choice *c, int i):
    """The log-probability of a choice's token i, as `Sampler.logprobs` has it; None where none was asked for."""
    cdef int j
    if c.n_logprobs < 0:
        return None
    cdef const ni_logprob *p = &c.logprobs[i]
    cdef int64_t at = <int64_t>i * c.n_logprobs
    top = [(c.top_ids[at + j], c.top[at + j]) for j in range(p.n)]
    return c.tokens[i], p.logprob, p.rank, tuple(top)


cdef int _choose_together(Team team, ni_choosing *job, int32_t n_vocab) except -1:
    """Runs the job on the team's workers, to its end: it is short."""
    cdef ni_status st
    cdef ni_team *workers = team.usable()
    cdef SampleScratch scratch = team.scratch
    if scratch is None or scratch.n_vocab < n_vocab or scratch.n_threads < len(team):
        team.scratch = scratch = SampleScratch(n_vocab, len(team))
    job.scratch, job.scratch_bytes, job.n_vocab = <uint8_t *>scratch.memory, scratch.each, scratch.n_vocab
    if ni_choosing_start(workers, job, &st):
        _fail(&st)
    with nogil:
        while not ni_team_wait(workers, 1000):
            pass
    return 0


cdef void _choose_alone(const ni_choosing *job, void *scratch) noexcept nogil:
    """Does the job on the calling thread."""
    cdef uint64_t mode = ni_floats_default()
    cdef int i
    for i in range(job.n):
        ni_choose(&job.choices[i], job.stride, scratch)
    ni_floats_restore(mode)


# From fewer logits is chosen on the calling thread: to wake it after the team takes 30 to 60 us. And of these, fewer still with the GIL held:
# to have it back from a busy thread of Python takes milliseconds. Counted as greedy ones; sampling costs as much as several.
cdef int64_t _ALONE = 1 << 20, _HELD = 1 << 19
cdef int _SAMPLING = 6


def choose(Team team, SampleScratch scratch not None, list samplers, float[:, ::1] logits, first=(0,), list proposals=None, dict given=None, turn=None):
    """The next tokens of sequences; of those whose sampler does not hold them, they are accepted and published.

    Parameters
    ----------
    team : Team or None
        Whose workers share the work, if there is enough of it; nobody else may use them meanwhile. None: the calling thread does it.
    scratch : SampleScratch
        The calling thread's; a team has its own, which is made if it is not there or too small.
    samplers : list of Sampler
        All different.
    logits : float32 array (rows, at least n_vocab of each)
        Of each sequence one row, or one more than were proposed. The same bits on return.
    first : sequence of int
        Each sequence's (first) row; they do not share any.
    proposals : list of (int32 array or None), optional
        Tokens that were proposed for each sequence.
    given : dict, optional
        By index in samplers: (logits, mask), each None or an array (n_vocab,) or (ceil(n_vocab / 32),), to be used instead of the first row; or
        None, if nothing is to be chosen. A third True: what was drawn before was refused, draw with the position's second number.
    turn : callable, optional
        Gives the context manager in which the team is used, if it is.

    Returns
    -------
    list
        For each None, or SAMPLE_NAN or SAMPLE_EMPTY where the row behind the published tokens is such; of samplers that hold:
        (token, logprob).
    """
    cdef int n = len(samplers), i, j, rows
    cdef int64_t at, work = 0, width = logits.shape[1], n_rows = logits.shape[0]
    cdef Sampler s
    cdef ni_choosing job
    cdef int32_t n_vocab = 1
    cdef list keep = []
    cdef const int32_t[::1] proposed
    cdef float[::1] instead
    cdef const uint32_t[::1] mask
    if len(first) != n:
        raise ValueError(f"{n} sequences, but {len(first)} rows to begin with")
    if not n:
        return []
    cdef ni_choice *c = <ni_choice *>_memory(n, sizeof(ni_choice), keep)
    cdef int32_t *tokens = <int32_t *>_memory(n_rows, sizeof(int32_t), keep)
    for i in range(n):
        s, at, rows = samplers[i], first[i], 1
        if proposals is not None and proposals[i] is not None:
            proposed = proposals[i]
            keep.append(proposed)
            rows += <int>proposed.shape[0]
            if rows > 1:
                c[i].proposed = &proposed[0]
        if at < 0 or at + rows > n_rows or s.n_vocab > width or s.n_vocab > scratch.n_vocab:
            raise ValueError(f"logits: found {n_rows} rows of {width} with scratch for {scratch.n_vocab}; the sampler of sequence {i} wants "
                             f"rows {at} to {at + rows - 1} of at least {s.n_vocab}")
        c[i].sampler, c[i].rows, c[i].n_logprobs, c[i].hold = s.sampler, rows, s.n_logprobs, s.holds
        c[i].logits, c[i].own, c[i].tokens = &logits[at, 0], &logits[at, 0], tokens + at
        if s.holds and rows > 1:
            raise ValueError(f"sequence {i}: its sampler holds what it chooses, so that it takes one row, found {rows}")
        if given is not None and i in given:
            own = given[i]
            if own is None:
                c[i].rows = 0
            else:
                if rows > 1:
                    raise ValueError(f"sequence {i}: logits or a mask were given for the first of {rows} rows")
                if own[0] is not None:
                    instead = own[0]
                    if instead.shape[0] != s.n_vocab:
                        raise ValueError(f"sequence {i}: found {instead.shape[0]} logits, wanted {s.n_vocab}")
                    keep.append(instead)
                    c[i].logits = &instead[0]
                if own[1] is not None:
                    mask = own[1]
                    if mask.shape[0] != (s.n_vocab + 31) // 32:
                        raise ValueError(f"sequence {i}: found {mask.shape[0]} words of mask, wanted {(s.n_vocab + 31) // 32}")
                    keep.append(mask)
                    c[i].mask = &mask[0]
                c[i].again = len(own) > 2 and own[2]
        if s.n_logprobs >= 0:
            c[i].logprobs = <ni_logprob *>_memory(rows, sizeof(ni_logprob), keep)
            c[i].top_ids = <int32_t *>_memory(rows * s.n_logprobs, sizeof(int32_t), keep)
            c[i].top = <float *>_memory(rows * s.n_logprobs, sizeof(float), keep)
        n_vocab = max(n_vocab, s.n_vocab)
        work += c[i].rows * <int64_t>s.n_vocab * (1 if s.greedy and s.n_logprobs < 0 else _SAMPLING)
    job.choices, job.n, job.next, job.stride = c, n, 0, width
    if team is not None and n > 1 and work >= _ALONE and len(team) > 1:
        if turn is None:
            _choose_together(team, &job, n_vocab)
        else:
            with turn():
                _choose_together(team, &job, n_vocab)
    elif work <= _HELD:
        _choose_alone(&job, scratch.memory)
    else:
        with nogil:
            _choose_alone(&job, scratch.memory)
    found = [None] * n
    for i in range(n):
        s = samplers[i]
        if c[i].hold and c[i].n:
            found[i] = c[i].tokens[0], _logprob(&c[i], 0)
            continue
        for j in range(c[i].n):
            s.publish(c[i].tokens[j], _logprob(&c[i], j), _reason(c[i].status) if j == c[i].n - 1 else None)
        if c[i].status < 0:
            found[i] = c[i].status
    return found
