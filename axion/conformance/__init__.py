"""What an OpenAI-compatible server does with each field of a request, found out over HTTP."""
