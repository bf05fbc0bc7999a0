"""The native API of llama.cpp's server: completions of texts, infilling, and what the server says of itself."""
