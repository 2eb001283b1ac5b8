"""Serves a model by transformers: JSON lines in on stdin, JSON lines out on stdout.

argv: model folder or GGUF file, threads, dtype ("auto" or a torch dtype's name).
In:  {"prompts": [[id, ...], ...], "new_tokens": n, "seed": s, "sampling": {...} or null,
      "stop": [id, ...]}
Out: {"ready": {"version", "vocab", "context", "bytes", "dtype"}}, then for each request
     {"tokens": [id, ...]} for each step (null for a prompt that has ended) and {"done": true},
     or {"error": "..."}.
Also in: {"score": [id, ...]}     out: {"logits": base64 of little-endian f32, [T, V]}
         {"weights": "module", "rows": [first, end]}
                                  out: {"weights": base64 of little-endian f32, [rows, cols]}
         {"tokenize": "text"}     out: {"ids": [id, ...]}
         {"render": [{"role", "content"}, ...]}   out: {"text": "..."}
Ends with its stdin.
"""
import base64
import json
import os
import sys

# What libraries print must not come between the lines: they get stderr.
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def say(**what):
    answers.write(json.dumps(what) + "\n")
    answers.flush()


def main():
    folder, threads, dtype = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    import torch
    import transformers
    from transformers import AutoModelForCausalLM
    from transformers.generation.streamers import BaseStreamer

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    transformers.utils.logging.set_verbosity_error()
    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    where = {"pretrained_model_name_or_path": folder, "local_files_only": True}
    if os.path.isfile(folder):
        place, file = os.path.split(folder)
        where.update(pretrained_model_name_or_path=place, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(dtype=kind, **where).eval()
    tensors = list(model.parameters()) + list(model.buffers())
    say(
        ready={
            "version": f"{transformers.__version__}, torch {torch.__version__}",
            "vocab": model.config.vocab_size,
            "context": getattr(model.config, "max_position_embeddings", 0),
            "bytes": sum(t.numel() * t.element_size() for t in tensors),
            "dtype": str(model.dtype).removeprefix("torch."),
        }
    )

    class Steps(BaseStreamer):
        def __init__(self):
            self.prompt = True

        def put(self, value):
            # The prompts come first.
            if self.prompt:
                self.prompt = False
                return
            say(tokens=value.reshape(-1).tolist())

        def end(self):
            pass

    def generate(order):
        ids = torch.tensor(order["prompts"])
        options = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if order["sampling"]:
            torch.manual_seed(order["seed"])
            options = dict(order["sampling"], do_sample=True)
        stop = order["stop"] or None
        # The model's own settings do not count.
        settings = transformers.GenerationConfig(
            max_new_tokens=order["new_tokens"],
            use_cache=True,
            eos_token_id=stop,
            pad_token_id=stop[0] if stop else 0,
            **options,
        )
        model.generation_config = settings
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            streamer=Steps(),
        )

    def coded(tensor):
        data = tensor.float().contiguous().numpy().astype("<f4", copy=False).tobytes()
        return base64.b64encode(data).decode("ascii")

    def score(ids):
        say(logits=coded(model(torch.tensor([ids]), use_cache=False).logits[0]))

    def weights(name, first, end):
        # Some kinds of linear get their weights with the first pass.
        model(torch.tensor([[0]]), use_cache=False)
        # What identity becomes: the weights of any kind of linear, as it multiplies with them.
        linear = model.get_submodule(name)
        one = torch.eye(linear.in_features, dtype=model.dtype)
        zero = torch.zeros(1, linear.in_features, dtype=model.dtype)
        say(weights=coded((linear(one) - linear(zero))[:, first:end].T))

    loaded = []

    def tokenizer():
        if not loaded:
            from transformers import AutoTokenizer

            loaded.append(AutoTokenizer.from_pretrained(**where))
        return loaded[0]

    def answer(order):
        if "score" in order:
            score(order["score"])
        elif "weights" in order:
            weights(order["weights"], *order["rows"])
        elif "tokenize" in order:
            say(ids=tokenizer()(order["tokenize"])["input_ids"])
        elif "render" in order:
            text = tokenizer().apply_chat_template(
                order["render"], tokenize=False, add_generation_prompt=True
            )
            say(text=text)
        else:
            generate(order)
            say(done=True)

    for line in sys.stdin:
        try:
            answer(json.loads(line))
        except Exception as error:
            say(error=f"{type(error).__name__}: {error}")


try:
    main()
except Exception as error:
    say(error=f"{type(error).__name__}: {error}")
    raise
