"""The page of a server: chats, runs and jobs in a browser. It is a client of the server's own routes, and knows no shortcut."""
