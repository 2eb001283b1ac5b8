"""Chat templates and prompt formats, rendered by transformers (and, for the formats, by FastChat).

    python make_templates.py

reads templates/*.jinja, writes templates/conversations.json, templates/rendered.json and templates/prompts.json.
"""

import datetime
import json
from pathlib import Path

import jinja2
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils
from tokenizers import Tokenizer, models

import versions

HERE = Path(__file__).parent / "templates"
NOW = datetime.datetime(2024, 7, 6, 9, 8, 7)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content} | more


def system(content):
    return {"role": "system", "content": content}


def tool(name, description, parameters):
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WEATHER = tool("weather", "The weather of a day in a \"place\" <now>.", {
    "type": "object",
    "properties": {
        "place": {"type": "string", "description": "Town, such as Zürich"},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "days": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["place"],
})
ADD = tool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
                            "required": ["a", "b"]})


def call(name, arguments, **more):
    return {"type": "function", "function": {"name": name, "arguments": arguments}} | more


# name: messages, and what else the template is given
CONVERSATIONS = {
    "single": dict(messages=[user("Hello there.")]),
    "multi": dict(messages=[user("Hello there."), assistant("Hi! "), user("  How far is the sea?\n"),
                            assistant(" Two days."), user("And back?")]),
    "system": dict(messages=[system("You are a lamp.\nAnswer briefly."), user("What do you see?")]),
    "system-multi": dict(messages=[system("You are a lamp."), user("What do you see?"), assistant("The sea."),
                                   user("And now?")]),
    "answered": dict(messages=[user("One?"), assistant("Two.")]),
    "system-only": dict(messages=[system("Nobody asks.")]),
    "user-twice": dict(messages=[user("One."), user("Two.")]),
    "assistant-first": dict(messages=[assistant("Ask me."), user("What?")]),
    "unknown-role": dict(messages=[user("Hm."), {"role": "narrator", "content": "Silence."}]),
    "late-system": dict(messages=[user("One?"), assistant("Two."), system("Be loud."), user("Three?")]),
    "hard-text": dict(messages=[user("<b>\"quotes\" & 'more'</b> {{ braces }} {% if %}\t\\n\n\n🙂 日本 é"),
                                assistant("</s><|im_end|>"), user("")]),
    "stop": dict(messages=[user("Go on."), assistant("STOP"), user("never seen")]),
    "parts": dict(messages=[user([{"type": "image"}, {"type": "text", "text": " What is it? "}])]),
    "empty-content": dict(messages=[user("x"), assistant(None), user("y")]),
    "no-messages": dict(messages=[]),
    "tools": dict(messages=[user("Weather in Bern?")], tools=[WEATHER, ADD]),
    "tools-system": dict(messages=[system("Be exact."), user("2 + 3?")], tools=[ADD]),
    "tool-calls": dict(
        messages=[user("Weather in Bern, and 2 + 3?"),
                  assistant("", tool_calls=[call("weather", {"place": "Bern", "days": [1, 2]}, id="call00001")]),
                  {"role": "tool", "name": "weather", "tool_call_id": "call00001",
                   "content": "{\"sun\": true, \"degrees\": 21.5}"},
                  assistant("It is sunny."), user("Thanks. Now the sum.")],
        tools=[WEATHER, ADD]),
    "two-calls": dict(
        messages=[user("Both."),
                  assistant("Wait.", tool_calls=[call("weather", {"place": "Zürich", "unit": None}, id="call00001"),
                                                 call("add", "{\"a\": 2, \"b\": 3}", id="call00002")]),
                  {"role": "tool", "tool_call_id": "call00001", "content": "sun"},
                  {"role": "tool", "tool_call_id": "call00002", "content": "5"},
                  assistant("Sun, and 5.")],
        tools=[WEATHER, ADD]),
    "short-id": dict(messages=[user("x"), assistant("", tool_calls=[call("add", {"a": 1, "b": 2}, id="c1")])]),
    "thinking": dict(messages=[user("Why?"), assistant("<think>\nold thought\n</think>\n\nBecause."), user("How?"),
                               assistant("<think>\nnew thought\n</think>\n\nSlowly.")]),
    "thinking-field": dict(messages=[user("Why?"), assistant("So.", reasoning_content="a thought\n")]),
    "no-thinking": dict(messages=[user("Why?")], enable_thinking=False),
    "given-date": dict(messages=[user("When?")], today="1 May 1999"),
}


def bare_tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **TOKENS)


def render(tokenizer, template: str, conversation: dict, generation_prompt: bool) -> dict:
    """The text; or the message that the template raised; or that it fails, with Python's words for it as a note."""
    given = dict(conversation)
    messages = given.pop("messages")
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=generation_prompt, **given)
        return {"text": text}
    except jinja2.exceptions.UndefinedError as e:
        return {"fails": str(e)}
    except jinja2.exceptions.TemplateError as e:
        return {"raised": str(e)}
    except Exception as e:
        return {"fails": f"{type(e).__name__}: {e}"}


def write_rendered(tokenizer) -> None:
    chat_template_utils.datetime = FixedClock
    made = []
    for path in sorted(HERE.glob("*.jinja")):
        template = path.read_text()
        for name, conversation in CONVERSATIONS.items():
            for generation_prompt in (False, True):
                made.append({"template": path.name, "conversation": name, "add_generation_prompt": generation_prompt}
                            | render(tokenizer, template, conversation, generation_prompt))
    (HERE / "conversations.json").write_text(json.dumps(CONVERSATIONS, indent=1) + "\n")
    head = {"made_with": versions.of("transformers", "jinja2"), "now": NOW.isoformat(), **TOKENS}
    lines = ",\n".join(json.dumps(m) for m in made)
    (HERE / "rendered.json").write_text(json.dumps(head)[:-1] + ', "cases": [\n' + lines + "\n]}\n")
    kinds = {k: sum(k in m for m in made) for k in ("text", "raised", "fails")}
    print(f"{len(made)} renderings: {kinds}")


# The seven published formats, as one line of template each; the text starts with the begin-of-text token where the
# format has one. Sources: model cards and repositories of Llama 2, Mistral 7B Instruct, Qwen (ChatML), Vicuna v1.1,
# Stanford Alpaca, TinyLlama Chat (Zephyr's format) and Gemma.
STRIP_SYSTEM = (
    "{% set system = messages[0].content if messages[0].role == 'system' else none %}"
    "{% set turns = messages[1:] if system is not none else messages %}"
)
FORMATS = {
    "llama2": STRIP_SYSTEM + (
        "{% for m in turns %}{% if m.role == 'user' %}{{ '<s>[INST] ' }}"
        "{% if loop.first and system is not none %}{{ '<<SYS>>\n' ~ system ~ '\n<</SYS>>\n\n' }}{% endif %}"
        "{{ m.content ~ ' [/INST]' }}{% else %}{{ ' ' ~ m.content ~ ' </s>' }}{% endif %}{% endfor %}"),
    "mistral": STRIP_SYSTEM + (
        "{{ '<s>' }}{% for m in turns %}{% if m.role == 'user' %}{{ '[INST] ' }}"
        "{% if loop.first and system is not none %}{{ system ~ '\n\n' }}{% endif %}"
        "{{ m.content ~ ' [/INST]' }}{% else %}{{ ' ' ~ m.content ~ '</s>' }}{% endif %}{% endfor %}"),
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"),
    "vicuna": STRIP_SYSTEM + (
        "{% if system is none %}{% set system = 'A chat between a curious user and an artificial intelligence "
        "assistant. The assistant gives helpful, detailed, and polite answers to the user\\'s questions.' %}{% endif %}"
        "{{ '<s>' ~ system ~ ' ' }}{% for m in turns %}{% if m.role == 'user' %}{{ 'USER: ' ~ m.content ~ ' ' }}"
        "{% else %}{{ 'ASSISTANT: ' ~ m.content ~ '</s>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"),
    "tinyllama": (
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>\n' ~ m.content ~ '</s>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"),
    "gemma": STRIP_SYSTEM + (
        "{{ '<bos>' }}{% for m in turns %}{{ '<start_of_turn>' ~ ('model' if m.role == 'assistant' else m.role) }}"
        "{{ '\n' }}{% if loop.first and system is not none %}{{ system ~ '\n\n' }}{% endif %}"
        "{{ m.content ~ '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"),
}
ALPACA = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request."
ALPACA_INPUT = ", paired with an input that provides further context"
FASTCHAT = {"llama2": "llama-2", "mistral": "mistral", "chatml": "chatml", "vicuna": "vicuna_v1.1", "alpaca": "alpaca",
            "tinyllama": "TinyLlama", "gemma": "gemma"}
PROMPTS = {
    "single": [user("Where is the lamp?")],
    "multi": [user("Where is the lamp?"), assistant("By the door."), user("And the key?")],
    "system": [system("You know the house."), user("Where is the lamp?")],
    "system-multi": [system("You know the house."), user("Where is the lamp?"), assistant("By the door."),
                     user("And the key?")],
}


def by_fastchat(name: str, messages: list[dict]) -> str | None:
    try:
        from fastchat.conversation import get_conv_template

        conv = get_conv_template(FASTCHAT[name])
    except Exception as e:
        print(f"FastChat has no {name}: {e}")
        return None
    for m in messages:
        if m["role"] == "system":
            conv.set_system_message(m["content"])
        else:
            conv.append_message(conv.roles[m["role"] == "assistant"], m["content"])
    conv.append_message(conv.roles[1], None)
    return conv.get_prompt()


def write_prompts(tokenizer) -> None:
    formats = {}
    for name, template in FORMATS.items():
        formats[name] = {}
        for which, messages in PROMPTS.items():
            said = render(tokenizer, template, {"messages": messages}, True)
            formats[name][which] = {"text": said["text"], "fastchat": by_fastchat(name, messages)}
    alpaca = {}
    head = ALPACA.format("")
    alpaca["instruction"] = {
        "instruction": "Name three rivers.", "input": "",
        "text": f"{head}\n\n### Instruction:\nName three rivers.\n\n### Response:",
    }
    alpaca["instruction-input"] = {
        "instruction": "Sum the numbers.", "input": "2, 3, 4",
        "text": f"{ALPACA.format(ALPACA_INPUT)}\n\n### Instruction:\nSum the numbers.\n\n### Input:\n2, 3, 4\n\n### Response:",
    }
    for which, messages in PROMPTS.items():
        alpaca[which] = {"fastchat": by_fastchat("alpaca", messages)}
    formats["alpaca"] = alpaca
    written = {"made_with": versions.of("transformers", "jinja2", "fschat"), "conversations": PROMPTS, "formats": formats}
    (HERE / "prompts.json").write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    tokenizer = bare_tokenizer()
    write_rendered(tokenizer)
    write_prompts(tokenizer)


if __name__ == "__main__":
    main()
