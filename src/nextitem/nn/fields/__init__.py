"""Fields of requests and items: what rankers and towers read, as codes and as vectors."""
