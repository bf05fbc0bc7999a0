"""From what a request asks of its output to a grammar, proven to compile."""
