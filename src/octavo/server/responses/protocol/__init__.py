"""Bodies of the Responses and Conversations APIs."""
