"""`doge-export serve`: an exported folder behind an HTTP server that OpenAI's clients speak with (extra `serve`)."""
