"""Pictures, sounds, videos and files of requests: what a caller may send, where it is fetched, how it is decoded."""
