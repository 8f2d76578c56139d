// Texts and conversations to token ids and back, from the files of an exported folder.

/** The text of an answer that grows token by token, without half characters. */
class Stream {
  #ids = [];
  #shown = "";

  constructor(decode) {
    this.decode = decode;
  }

  /** Returns what another token adds to the text; "" while a character is not complete. */
  push(id) {
    this.#ids.push(id);
    const text = this.decode(this.#ids);
    if (text.endsWith("\uFFFD")) return "";
    const added = text.slice(this.#shown.length);
    this.#shown = text;
    return added;
  }
}

export class Texts {
  /**
   * @param classes Tokenizer of @huggingface/tokenizers and Template of @huggingface/jinja
   * @param files   contents of tokenizer.json, tokenizer_config.json and generation_config.json; and of chat_template.jinja,
   *                which folders that are not portable have in place of a line in tokenizer_config.json
   */
  constructor({ Tokenizer, Template }, { tokenizer, config, generation = {}, chatTemplate }) {
    this.tokenizer = new Tokenizer(tokenizer, config);
    this.config = config;
    const template = config.chat_template;
    const source = Array.isArray(template) ? template.find(({ name }) => name === "default")?.template : (template ?? chatTemplate);
    this.template = source ? new Template(source) : null;
    this.eos = [generation.eos_token_id ?? []].flat();
  }

  /** Ids of a text, with the token that begins every text where the tokenizer adds one. */
  encode(text) {
    return this.tokenizer.encode(text).ids;
  }

  /** Ids of a conversation, [{role, content}, ...], up to where the answer begins. */
  encodeChat(messages) {
    if (this.template === null) throw new Error("this model has no chat template: give it a plain text");
    const special = Object.fromEntries(
      ["bos_token", "eos_token", "pad_token", "unk_token"].map((name) => {
        const token = this.config[name];
        return [name, token?.content ?? token ?? ""];
      }),
    );
    const text = this.template.render({ messages, add_generation_prompt: true, ...special });
    return this.tokenizer.encode(text, { add_special_tokens: false }).ids;
  }

  /** The text of ids, without special tokens. */
  decode(ids) {
    return this.tokenizer.decode(ids, { skip_special_tokens: true });
  }

  stream() {
    return new Stream((ids) => this.decode(ids));
  }
}
