"""Text in the API process: tokenizer, detokenizer, stop strings, chat templates. No torch, no transformers."""
