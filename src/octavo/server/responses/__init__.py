"""OpenAI's Responses and Conversations: items to turns, news to items and events, and what is kept of them."""
