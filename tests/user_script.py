"""A user's script, as strictly typed as they come: test_annotations lets mypy read it."""
import asyncio
from collections.abc import Iterator

import numpy as np
import numainfer as ni
from numainfer import Completion, SamplingParams, Session, TokenStream


def answers(model: ni.Model, prompts: list[str]) -> list[str]:
    done = model.generate(prompts, SamplingParams(temperature=0.7), max_tokens=10)
    return [c.text for c in done]


def one(model: ni.Model) -> str:
    c: Completion = model.generate("Hi", max_tokens=3, stop=["x"], logprobs=2)
    if c.logprobs is not None:
        print(c.logprobs[0].text, c.logprobs[0].top[0].logprob)
    return c.text + str(c.usage.total_tokens) + str(c.timings.generation_tokens_per_second)


def pieces(model: ni.Model) -> Iterator[str]:
    stream: TokenStream = model.stream("Hi", temperature=0.5, seed=1)
    with stream:
        for chunk in stream:
            yield chunk.text


def chat(model: ni.Model) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    print(model.chat(messages).text, model.chat("Hello", max_tokens=3).text)
    for chunk in model.chat(messages, stream=True):
        print(chunk.text, chunk.reasoning)
    done = model.chat(messages, tools=[{"type": "function", "function": {"name": "f"}}], max_tokens=3)
    calls: tuple[ni.ToolCall, ...] = done.tool_calls
    print([(call.id, call.name, call.arguments) for call in calls], done.to_message())


async def served(model: ni.Model) -> str:
    one: Completion = await model.agenerate("Hi", max_tokens=3)
    many: ni.Completions = await model.agenerate(["a", "b"], SamplingParams(seed=1))
    texts = [chunk.text async for chunk in model.astream("Hi", stop="x")]
    answer: Completion = await model.achat([{"role": "user", "content": "Hello"}], max_tokens=3)
    async with await model.achat("Hello", stream=True) as stream:
        async for chunk in stream:
            texts.append(chunk.text)
    kept: ni.AsyncTokenStream = model.astream("Hi")
    await kept.aclose()
    return one.text + many[0].text + "".join(texts) + answer.text + str(stream.result().usage.total_tokens)


def rest(model: ni.Model, session: Session) -> None:
    logits = model.logits([1, 2])
    print(logits.argmax(), float(np.max(logits)), model.score("x y").perplexity, model.embed(["a"]).shape)
    ids = model.tokenizer.encode("x")
    print(model.tokenizer.decode(ids), model.placement.nodes[0].weights, model.config.architecture, model.plan)
    other = session.fork()
    other.rewind(1)
    other.close()


if __name__ == "__main__":
    with ni.load("smollm2", n_ctx=100, placement="auto") as model, model.session() as session:
        print(answers(model, ["a"]), one(model), list(pieces(model)))
        chat(model)
        rest(model, session)
        print(asyncio.run(served(model)))
        try:
            model.generate(["a"])
        except ni.Interrupted as e:
            print(e.completions[0].text)
    print(ni.topology())
