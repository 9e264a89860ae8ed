"""Our own model code: one decoder for the Llama family, with switches where its members differ."""
