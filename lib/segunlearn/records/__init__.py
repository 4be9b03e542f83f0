"""Records: the store, the ledger, forget requests and model versions. Imports no torch."""
