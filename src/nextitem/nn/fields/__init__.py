"""Fields of requests and items, the inputs of rankers and towers: as codes and as vectors."""
