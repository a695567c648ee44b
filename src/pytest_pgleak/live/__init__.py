"""The application as a real server, in processes of its own, with the ledger inside them."""
