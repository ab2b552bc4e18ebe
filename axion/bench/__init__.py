"""Measuring a server of the OpenAI API from outside: load, what came of it, reports."""
