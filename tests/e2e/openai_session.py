"""Ask models of texts with the openai client; prints what came back as JSON."""

import json
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
found: dict = {"models": sorted(model.id for model in client.models.list())}
asked = {"model": "generator", "max_tokens": 12, "temperature": 0}

whole = client.completions.create(prompt="the boat", **asked)
found["completion"] = [whole.choices[0].text, whole.choices[0].finish_reason, whole.usage.completion_tokens]
pieces = list(
    client.completions.create(prompt="the boat", stream=True, stream_options={"include_usage": True}, **asked)
)
found["pieces"] = [piece.choices[0].text for piece in pieces if piece.choices]
found["stream_usage"] = pieces[-1].usage.total_tokens

messages = [{"role": "user", "content": "hello"}]
chat = client.chat.completions.create(messages=messages, **asked)
found["chat"] = chat.choices[0].message.content
stream = client.chat.completions.create(messages=messages, stream=True, **asked)
found["chat_pieces"] = [chunk.choices[0].delta.content or "" for chunk in stream]

again = [client.completions.create(prompt="the", **(asked | {"temperature": 1, "seed": 7})) for _ in range(2)]
found["seeded"] = [answer.choices[0].text for answer in again]
end = client.completions.create(prompt="the boat", stop=[found["completion"][0][3:6]], **asked).choices[0]
found["stopped"] = [end.text, end.finish_reason]

vectors = client.embeddings.create(model="embedder", input=["the boat sails", "hello"])
found["vectors"] = [item.embedding for item in vectors.data]
try:
    client.chat.completions.create(messages=messages, model="generator", tools=[{"type": "function", "function": {}}])
except openai.BadRequestError as error:
    found["refused"] = error.message
try:
    client.completions.create(model="nobody", prompt="the")
except openai.NotFoundError as error:
    found["unknown"] = error.message
print(json.dumps(found))
