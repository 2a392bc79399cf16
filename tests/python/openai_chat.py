"""Talks to a petaflop server with the official OpenAI client and checks what it gets.

usage: openai_chat.py BASE_URL MODEL CONTEXT

Prints one JSON object with what was seen; any difference from what is promised
is an AssertionError.
"""

import json
import sys

import openai

base_url, model, context = sys.argv[1], sys.argv[2], int(sys.argv[3])
client = openai.OpenAI(base_url=base_url, api_key="none-is-needed", max_retries=0, timeout=60)

models = [m.id for m in client.models.list()]
assert models == [model], models
assert client.models.retrieve(model).id == model

question = dict(
    model=model,
    messages=[
        {"role": "system", "content": "You answer."},
        {"role": "user", "content": "What is a claim?"},
    ],
    temperature=0.8,
    top_p=0.9,
    seed=7,
    max_tokens=24,
)

# Streamed: a role, then pieces of text, one reason to end, and the token counts last.
chunks = list(
    client.chat.completions.create(
        **question, stream=True, stream_options={"include_usage": True}
    )
)
assert {c.object for c in chunks} == {"chat.completion.chunk"}
assert len({c.id for c in chunks}) == 1, "one id for all chunks"
assert chunks[0].choices[0].delta.role == "assistant"
pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
reasons = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
streamed = "".join(pieces)
assert len([p for p in pieces if p]) > 1, f"came in one piece: {pieces}"
assert len(reasons) == 1 and reasons[0] in ("stop", "length"), reasons
assert chunks[-1].choices == [] and chunks[-1].usage is not None, "token counts come last"
assert all(c.usage is None for c in chunks[:-1])

# Not streamed: the same tokens, since seed and prompt are the same.
whole = client.chat.completions.create(**question)
assert whole.object == "chat.completion"
assert whole.choices[0].message.role == "assistant"
assert whole.choices[0].message.content == streamed, (whole.choices[0].message.content, streamed)
assert whole.choices[0].finish_reason == reasons[0]
assert whole.usage == chunks[-1].usage, (whole.usage, chunks[-1].usage)
assert whole.usage.prompt_tokens > 0
assert 0 < whole.usage.completion_tokens <= 24
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

# What the client sends back as history is accepted, and an answer of one token is one token.
history = question["messages"] + [
    whole.choices[0].message.model_dump(),
    {"role": "user", "content": [{"type": "text", "text": "And?"}]},
]
more = client.chat.completions.create(
    **{**question, "messages": history, "max_tokens": None, "max_completion_tokens": 1}
)
assert more.usage.completion_tokens == 1 and more.choices[0].finish_reason in ("length", "stop")

# A plain completion, streamed and not.
prompt = dict(model=model, prompt="A claim is", temperature=0, max_tokens=12)
text = client.completions.create(**prompt).choices[0].text
assert text == "".join(c.choices[0].text for c in client.completions.create(**prompt, stream=True))

# A stop sequence taken from the answer ends it there and is not sent.
if len(text) > 2:
    stop = text[1:3]
    cut = client.completions.create(**prompt, stop=stop).choices[0]
    assert cut.text == text[: text.index(stop)], (cut.text, text, stop)
    assert cut.finish_reason == "stop"

# A prompt that does not fit: 400 with both numbers, for the caller to read and for programs.
try:
    client.chat.completions.create(
        **{**question, "messages": [{"role": "user", "content": "word " * (4 * context)}]}
    )
    raise AssertionError("a prompt larger than the context was taken")
except openai.BadRequestError as e:
    assert e.status_code == 400 and e.code == "context_length_exceeded", e
    assert e.type == "invalid_request_error" and e.param == "messages", e
    assert str(context) in e.message, e
    too_long = e.message

# What is not built is refused by name.
try:
    client.chat.completions.create(
        **question, tools=[{"type": "function", "function": {"name": "f"}}]
    )
    raise AssertionError("tools were taken")
except openai.BadRequestError as e:
    assert e.param == "tools", e
try:
    client.chat.completions.create(**{**question, "model": "another"})
    raise AssertionError("another model was taken")
except openai.NotFoundError as e:
    assert e.code == "model_not_found", e

print(
    json.dumps(
        {
            "openai": openai.__version__,
            "pieces": len(pieces),
            "finish_reason": reasons[0],
            "usage": whole.usage.model_dump(exclude_none=True),
            "too_long": too_long,
        }
    )
)
