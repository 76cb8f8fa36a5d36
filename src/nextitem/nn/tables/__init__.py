"""Tables of embedding vectors: dense, growing with the ids that training meets, or hashed."""
