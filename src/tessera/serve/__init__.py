"""The OpenAI API over our engine: `app.build` makes an ASGI application from models, a store and keys."""
