"""OpenAI's interface over HTTP (``numainfer serve``): one loaded model, Starlette and Uvicorn, nothing of our own below them."""
