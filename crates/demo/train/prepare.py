"""Turns the training text into a tokenizer and packed token files.

    python prepare.py --data DATA --held HELD.txt --out OUT

DATA is a folder laid out as the table in README.md says. HELD is held-out
text: a story that shares 8-word runs with it is dropped, and its beginning
becomes the validation set. OUT gets tokenizer.json, one NAME.npz for each
source (tokens, loss mask, document starts), mix.json, and valid.npz.
"""

import argparse
import json
import pathlib
import random
import re

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from story_requests import GREETINGS, SYSTEMS, chats_from_story, greeting_chats

BOS, EOS, START, END = "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"
VOCAB = 4096
# One digit is one token, a word keeps the space before it, and newlines stay apart from words.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How often a document of each source is seen in one round of the mix: while the learning rate
# stays, and while it falls.
MIX = {
    "tinystories": (1.5, 1.0),
    "cased": (1.5, 1.0),
    "simplestories": (3.0, 2.0),
    "storybooks": (2.0, 1.0),
    "aesop": (1.0, 1.0),
    "fairytales": (0.5, 0.1),
    "books": (0.5, 0.1),
    "chat_stories": (0.33, 0.5),
    "chat_fables": (0.7, 0.5),
    "chat_persona": (1.0, 0.5),
    "chat_questions": (0.3, 0.1),
    "chat_greetings": (1.0, 1.0),
}
PIECE = 480  # tokens of a long book that make one document


def stories(path):
    """The documents of a text file, which a line `<|endoftext|>` ends."""
    parts = re.split(r"^<\|endoftext\|>\s*$", path.read_text(encoding="utf-8"), flags=re.M)
    return [p.strip() for p in parts if len(p.strip()) > 80]


def runs(text):
    words = re.findall(r"[a-z0-9']+", text.lower())
    return {hash(tuple(words[i : i + 8])) for i in range(len(words) - 7)}


def read_sources(data, held):
    """Plain documents by source, without those that overlap the held-out text or repeat."""
    files = {
        "tinystories": sorted((data / "tinystories").glob("*.txt")),
        "cased": sorted((data / "tinystories_cased_of_held").glob("*.txt")),
        "simplestories": sorted((data / "simplestories").glob("*.txt")),
        "storybooks": sorted((data / "storybooks").glob("*.txt")),
        "aesop": [data / "fairytales" / "aesop_for_children_loc.txt"],
        "fairytales": [
            data / "fairytales" / name
            for name in ("andersen_wilde_lcats.txt", "grimm_margaret_hunt.txt", "montgomery_follen_lcats.txt")
        ],
        "books": sorted((data / "gutenberg").glob("*.txt")),
    }
    held_runs = runs(held)
    seen, out = set(), {}
    for name, paths in files.items():
        kept, dropped = [], 0
        for path in paths:
            for text in stories(path):
                mine = runs(text)
                key = re.sub(r"\W+", "", text.lower())[:400]
                if key in seen or (mine and len(mine & held_runs) / len(mine) > 0.1):
                    dropped += 1
                    continue
                seen.add(key)
                kept.append(text)
        out[name] = kept
        print(f"{name}: {len(kept)} documents kept, {dropped} dropped (repeated or held out)")
    return out


def train_tokenizer(texts):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[BOS, EOS, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tok.train_from_iterator(texts, trainer)
    tok.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tok.token_to_id(BOS))]
    )
    return tok


class Packer:
    """Collects documents as tokens with a loss mask (1: learn to predict this token)."""

    def __init__(self, tok):
        self.tok, self.tokens, self.mask, self.starts = tok, [], [], []

    def ids(self, text):
        return self.tok.encode(text, add_special_tokens=False).ids

    def add(self, ids, mask):
        self.starts.append(len(self.tokens))
        self.tokens += ids
        self.mask += mask

    def plain(self, text):
        ids = self.ids(text)
        whole = len(ids) <= 2 * PIECE
        while ids:
            cut = len(ids) if whole or len(ids) <= PIECE else self.paragraph_end(ids)
            piece, ids = [0] + ids[:cut], ids[cut:]
            piece += [] if ids else [1]
            self.add(piece, [0] + [1] * (len(piece) - 1))

    def paragraph_end(self, ids):
        for at in range(PIECE, PIECE // 2, -1):
            if "\n" in self.tok.decode(ids[at - 1 : at]):
                return at
        return PIECE

    def chat(self, messages, learn=("assistant",)):
        ids, mask = [0], [0]
        for m in messages:
            head = self.ids(f"{START}{m['role']}\n")
            body = self.ids(m["content"] + END)
            on = int(m["role"] in learn)
            tail = self.ids("\n")
            ids += head + body + tail
            mask += [0] * len(head) + [on] * len(body) + [0] * len(tail)
        self.add(ids, mask)

    def save(self, path):
        np.savez(
            path,
            tokens=np.array(self.tokens, dtype=np.uint16),
            mask=np.array(self.mask, dtype=np.uint8),
            starts=np.array(self.starts, dtype=np.int64),
        )
        return len(self.tokens), sum(self.mask)


def jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def question_chats(path):
    """One conversation for each passage: the passage with the first question, then up to two more."""
    groups = {}
    for row in jsonl(path):
        user, answer = row["messages"][0]["content"], row["messages"][1]["content"]
        passage, _, question = user.rpartition("\n\n")
        if len(passage) < 1400:
            groups.setdefault(passage, []).append((question, answer))
    for passage, pairs in groups.items():
        messages = []
        for i, (question, answer) in enumerate(pairs[:3]):
            messages.append({"role": "user", "content": f"{passage}\n\n{question}" if i == 0 else question})
            messages.append({"role": "assistant", "content": answer[:1].upper() + answer[1:].rstrip(".") + "."})
        yield messages


def tokenizer_sample(sources):
    """What the tokenizer learns from: simple English whole, and the beginnings of old books."""
    sample = [t for n in ("tinystories", "cased", "storybooks", "aesop", "simplestories") for t in sources[n]]
    sample += [t[:40_000] for t in sources["fairytales"] + sources["books"]]
    return sample + [text for pair in GREETINGS for text in pair]


def pack_plain(name, texts, tok, rng):
    pack = Packer(tok)
    for text in texts:
        # Files write paragraphs with one newline or with a blank line: be at home in both.
        if name in ("tinystories", "cased") and rng.random() < 0.4:
            text = re.sub(r"\n+", "\n\n", text)
        pack.plain(text)
    return pack


def conversations(data, sources, rng):
    """Conversations by source: those that come as such, and those made from stories."""
    chats = {
        "chat_stories": [],
        "chat_fables": [r["messages"] for r in jsonl(data / "chat" / "fables_permissive_prompts.jsonl")],
        "chat_persona": [r["messages"][:10] for r in jsonl(data / "chat" / "synthetic_persona_chat.jsonl")],
        "chat_questions": list(question_chats(data / "chat" / "fairytaleqa.jsonl")),
        "chat_greetings": list(greeting_chats(rng, 400)),
    }
    for name in ("tinystories", "cased", "simplestories", "storybooks", "aesop"):
        for text in sources[name]:
            if len(text) < 1900:
                chats["chat_stories"] += chats_from_story(text, rng, titled=name in ("storybooks", "aesop"))
    return chats


def pack_chat(name, chats, tok, rng):
    pack = Packer(tok)
    learn = ("user", "assistant") if name in ("chat_persona", "chat_questions") else ("assistant",)
    for messages in chats:
        if name in ("chat_stories", "chat_greetings") and rng.random() < 0.15:
            messages = [{"role": "system", "content": rng.choice(SYSTEMS)}] + messages
        pack.chat(messages, learn)
    return pack


def pack_held(held, tok, rng):
    """The validation sets: the first held-out stories, and one request for each of them."""
    texts = [s.strip() for s in re.split(r"^<\|endoftext\|>\s*$|\n\n(?=Once upon)", held, flags=re.M)]
    valid, chat = Packer(tok), Packer(tok)
    for text in texts[1:161]:  # the file begins in the middle of a story
        text = re.sub(r"\n+", "\n", text)
        valid.plain(text)
        for messages in chats_from_story(text, rng, count=1):
            chat.chat(messages)
    return {"valid": valid, "valid_chat": chat}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--data", type=pathlib.Path, required=True)
    p.add_argument("--held", type=pathlib.Path, required=True)
    p.add_argument("--out", type=pathlib.Path, required=True)
    a = p.parse_args()
    rng = random.Random(20261121)
    a.out.mkdir(parents=True, exist_ok=True)

    held = a.held.read_text(encoding="utf-8")
    sources = read_sources(a.data, held)
    tok = train_tokenizer(tokenizer_sample(sources))
    tok.save(str(a.out / "tokenizer.json"))

    packs = {name: pack_plain(name, texts, tok, rng) for name, texts in sources.items()}
    packs |= {name: pack_chat(name, chats, tok, rng) for name, chats in conversations(a.data, sources, rng).items()}
    packs |= pack_held(held, tok, rng)
    totals = {name: pack.save(a.out / f"{name}.npz") for name, pack in packs.items()}
    (a.out / "mix.json").write_text(json.dumps(MIX, indent=1))
    report(totals)


def report(totals):
    for name, (tokens, learnt) in totals.items():
        print(f"{name}: {tokens} tokens, {learnt} with loss")
    for i, phase in enumerate(("while the rate stays", "while it falls")):
        seen = {n: round(totals[n][0] * MIX[n][i]) for n in MIX}
        chat = sum(v for n, v in seen.items() if n.startswith("chat"))
        print(f"a round {phase}: {sum(seen.values())} tokens, {chat} of them chat: {seen}")


if __name__ == "__main__":
    main()
