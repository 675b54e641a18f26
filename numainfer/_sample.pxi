# Binds csrc/sample.h. Results below zero are the header's codes; numainfer/sampling.py turns them into exceptions.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

cdef extern from "../csrc/sample.h":
    enum:
        NI_SAMPLE_NAN
        NI_SAMPLE_EMPTY
        NI_SAMPLE_BAD_ARGUMENT
        NI_SAMPLE_NO_MEMORY
        NI_LOGPROBS_MAX
    ctypedef struct ni_sampler_params:
        double temperature
        double top_p
        double min_p
        double repetition_penalty
        double presence_penalty
        double frequency_penalty
        int32_t top_k
        int32_t min_tokens
        uint64_t seed
    ctypedef struct ni_sampler:
        pass
    size_t ni_sample_scratch_bytes(int32_t n_vocab) nogil
    ni_sampler *ni_sampler_new(const ni_sampler_params *params, int32_t n_vocab, const int32_t *prompt,
                               int64_t n_prompt, const int32_t *bias_ids, const float *bias, int32_t n_bias,
                               const int32_t *stop_ids, int32_t n_stop, int *status) nogil
    void ni_sampler_free(ni_sampler *s) nogil
    void ni_mask_logits(const float *logits, const uint32_t *mask, int32_t n, float *out) nogil
    int32_t ni_sample(ni_sampler *s, float *logits, void *scratch) nogil
    int32_t ni_sampler_distribution(ni_sampler *s, float *logits, void *scratch, int32_t *ids, double *probs) nogil
    int ni_sampler_accept(ni_sampler *s, int32_t id) nogil
    double ni_sample_uniform(uint64_t seed, uint64_t position) nogil
    int32_t ni_top_logprobs(const float *logits, int32_t n_vocab, int32_t chosen, int32_t k, void *scratch,
                            int32_t *ids, float *logprobs, float *chosen_logprob, int32_t *chosen_rank) nogil

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
    """Work memory for samplers over n_vocab logits; used by one thread at a time."""

    cdef void *memory
    cdef readonly int32_t n_vocab

    def __cinit__(self, int32_t n_vocab):
        if n_vocab < 1:
            raise ValueError(f"n_vocab = {n_vocab}: must be at least 1")
        self.n_vocab = n_vocab
        self.memory = malloc(ni_sample_scratch_bytes(n_vocab))
        if self.memory == NULL:
            raise MemoryError(f"sampling {n_vocab} logits needs {ni_sample_scratch_bytes(n_vocab)} bytes of scratch")

    def __dealloc__(self):
        free(self.memory)


cdef class Sampler:
    """ni_sampler: the sampling state of one sequence. int32 and float32 arrays are C-contiguous."""

    cdef ni_sampler *sampler
    cdef readonly int32_t n_vocab

    def __cinit__(self, int32_t n_vocab, const int32_t[::1] prompt, const int32_t[::1] bias_ids,
                  const float[::1] bias, const int32_t[::1] stop_ids, *, double temperature, int32_t top_k,
                  double top_p, double min_p, double repetition_penalty, double presence_penalty,
                  double frequency_penalty, int32_t min_tokens, uint64_t seed):
        cdef ni_sampler_params p
        cdef int status = 0
        if bias.shape[0] != bias_ids.shape[0]:
            raise ValueError(f"{bias_ids.shape[0]} bias ids for {bias.shape[0]} biases")
        cdef uint64_t mode = ni_floats_default()
        p.temperature, p.top_k, p.top_p, p.min_p = temperature, top_k, top_p, min_p
        p.repetition_penalty, p.presence_penalty = repetition_penalty, presence_penalty
        p.frequency_penalty, p.min_tokens, p.seed = frequency_penalty, min_tokens, seed
        self.n_vocab = n_vocab
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
        if n_logits != self.n_vocab or scratch.n_vocab != self.n_vocab:
            raise ValueError(f"{n_logits} logits and scratch for {scratch.n_vocab}: the sampler is for {self.n_vocab}")
        return 0

    def sample(self, float[::1] logits, SampleScratch scratch not None):
        """A token id, or SAMPLE_NAN or SAMPLE_EMPTY. Does not count the token."""
        cdef int32_t token
        self.check(logits.shape[0], scratch)
        cdef uint64_t mode
        with nogil:
            mode = ni_floats_default()
            token = ni_sample(self.sampler, &logits[0], scratch.memory)
            ni_floats_restore(mode)
        return token

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
        """Records that the sequence got this token."""
        if ni_sampler_accept(self.sampler, token) != 0:
            raise ValueError(f"token id {token}: outside [0, {self.n_vocab})")


def top_logprobs(const float[::1] logits, int32_t chosen, SampleScratch scratch not None, int32_t[::1] ids,
                 float[::1] logprobs):
    """Fills ids and logprobs with the most probable tokens, as many as both have room for.

    Returns (count, log-probability of chosen, rank of chosen), or (SAMPLE_NAN or SAMPLE_EMPTY, None, None).
    """
    cdef int32_t k = <int32_t>min(ids.shape[0], logprobs.shape[0], NI_LOGPROBS_MAX)
    cdef int32_t count, rank = 0
    cdef float logprob = 0
    if logits.shape[0] != scratch.n_vocab:
        raise ValueError(f"{logits.shape[0]} logits with scratch for {scratch.n_vocab}")
    cdef uint64_t mode
    with nogil:
        mode = ni_floats_default()
        count = ni_top_logprobs(&logits[0], scratch.n_vocab, chosen, k, scratch.memory, &ids[0] if k else NULL,
                                &logprobs[0] if k else NULL, &logprob, &rank)
        ni_floats_restore(mode)
    if count == NI_SAMPLE_BAD_ARGUMENT:
        raise ValueError(f"token id {chosen}: outside [0, {scratch.n_vocab})")
    return (count, logprob, rank) if count >= 0 else (count, None, None)
