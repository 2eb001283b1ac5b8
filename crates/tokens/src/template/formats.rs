/// A prompt format by name, for models that come without a template.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// What `--prompt-format` calls it.
    pub name: &'static str,
    /// One line about it.
    pub about: &'static str,
    /// Strings at which a reply ends, beside the tokenizer's stop tokens.
    pub stop_strings: &'static [&'static str],
    /// Whether bos comes on top of the text; the other formats write it themselves or have none.
    pub add_special: bool,
    /// The format as Jinja.
    pub(super) template: &'static str,
}

/// The built-in formats. Their `system` message goes where their makers put it, and they take any
/// number of turns.
pub static FORMATS: &[Format] = &[
    Format {
        name: "llama2",
        about: "Llama 2 Chat: [INST] with <<SYS>>",
        stop_strings: &["</s>", "[INST]"],
        add_special: false,
        template: "{%- set ns = namespace(system='') -%}
            {%- for m in messages -%}
            {%- if m.role == 'system' -%}
                {%- set ns.system = '<<SYS>>\n' ~ m.content ~ '\n<</SYS>>\n\n' -%}
            {%- elif m.role == 'user' -%}
                {{- bos_token ~ '[INST] ' ~ ns.system ~ m.content ~ ' [/INST]' -}}
                {%- set ns.system = '' -%}
            {%- else -%}
                {{- ' ' ~ m.content ~ ' ' ~ eos_token -}}
            {%- endif -%}
            {%- endfor -%}",
    },
    Format {
        name: "mistral",
        about: "Mistral Instruct: [INST], the system message in the first turn",
        stop_strings: &["</s>", "[INST]"],
        add_special: false,
        template: "{{- bos_token -}}
            {%- set ns = namespace(system='') -%}
            {%- for m in messages -%}
            {%- if m.role == 'system' -%}
                {%- set ns.system = m.content ~ '\n\n' -%}
            {%- elif m.role == 'user' -%}
                {{- '[INST] ' ~ ns.system ~ m.content ~ ' [/INST]' -}}
                {%- set ns.system = '' -%}
            {%- else -%}
                {{- ' ' ~ m.content ~ eos_token -}}
            {%- endif -%}
            {%- endfor -%}",
    },
    Format {
        name: "chatml",
        about: "ChatML, of Qwen and many others: <|im_start|> and <|im_end|>",
        stop_strings: &["<|im_end|>", "<|im_start|>"],
        add_special: false,
        template: "{%- for m in messages -%}
                {{- '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' -}}
            {%- endfor -%}
            {%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}",
    },
    Format {
        name: "vicuna",
        about: "Vicuna 1.1 (FastChat): USER: and ASSISTANT:",
        stop_strings: &["</s>", "USER:"],
        add_special: false,
        template: "{{- bos_token -}}
            {%- if messages[0].role != 'system' -%}
                {{- 'A chat between a curious user and an artificial intelligence assistant. ' -}}
                {{- 'The assistant gives helpful, detailed, and polite answers to the user\\'s questions. ' -}}
            {%- endif -%}
            {%- for m in messages -%}
            {%- if m.role == 'system' -%}{{- m.content ~ ' ' -}}
            {%- elif m.role == 'user' -%}{{- 'USER: ' ~ m.content ~ ' ' -}}
            {%- else -%}{{- 'ASSISTANT: ' ~ m.content ~ eos_token -}}
            {%- endif -%}
            {%- endfor -%}
            {%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}",
    },
    Format {
        name: "alpaca",
        about: "Stanford Alpaca: ### Instruction, ### Input (a user message's `input`), ### Response",
        stop_strings: &["</s>", "### Instruction:", "### Input:"],
        add_special: true,
        template: "{%- if messages[0].role != 'system' -%}
                {{- 'Below is an instruction that describes a task' -}}
                {{- ', paired with an input that provides further context' if messages[0].input -}}
                {{- '. Write a response that appropriately completes the request.\n\n' -}}
            {%- endif -%}
            {%- for m in messages -%}
            {%- if m.role == 'system' -%}{{- m.content ~ '\n\n' -}}
            {%- elif m.role == 'user' -%}
                {{- '### Instruction:\n' ~ m.content ~ '\n\n' -}}
                {%- if m.input -%}{{- '### Input:\n' ~ m.input ~ '\n\n' -}}{%- endif -%}
            {%- else -%}{{- '### Response:\n' ~ m.content ~ eos_token ~ '\n\n' -}}
            {%- endif -%}
            {%- endfor -%}
            {%- if add_generation_prompt -%}{{- '### Response:' -}}{%- endif -%}",
    },
    Format {
        name: "tinyllama",
        about: "TinyLlama Chat (and Zephyr): <|user|> and <|assistant|>",
        stop_strings: &["</s>", "<|user|>"],
        add_special: false,
        template: "{%- for m in messages -%}
                {{- '<|' ~ m.role ~ '|>\n' ~ m.content ~ eos_token ~ '\n' -}}
            {%- endfor -%}
            {%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}{%- endif -%}",
    },
    Format {
        name: "gemma",
        about: "Gemma: <start_of_turn>, the system message in the first turn",
        stop_strings: &["<end_of_turn>", "<start_of_turn>"],
        add_special: false,
        template: "{{- bos_token -}}
            {%- set ns = namespace(system='') -%}
            {%- for m in messages -%}
            {%- if m.role == 'system' -%}
                {%- set ns.system = m.content ~ '\n\n' -%}
            {%- else -%}
                {{- '<start_of_turn>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\n' -}}
                {{- ns.system ~ m.content ~ '<end_of_turn>\n' -}}
                {%- set ns.system = '' -%}
            {%- endif -%}
            {%- endfor -%}
            {%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}",
    },
];

/// Their names, for messages.
pub(super) fn names() -> String {
    FORMATS.iter().map(|f| f.name).collect::<Vec<_>>().join(", ")
}
