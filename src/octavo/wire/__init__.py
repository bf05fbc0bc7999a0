"""What crosses between processes: messages, the plan of a step, and the connection that carries them."""
