"""Append events and print the id of each acknowledged one: URL NAMESPACE PREFIX NUMBER SIZE.

The program appends NUMBER batches of SIZE events, with ids PREFIX-0, PREFIX-1, ...; it first prints "ready".
"""

from __future__ import annotations

import sys

from nextitem.serving.stores import StoredEvent, open_store


def main(url: str, namespace: str, prefix: str, num_batches: int, size: int) -> None:
    with open_store(url, namespace=namespace) as store:
        store.check()
        print("ready", flush=True)
        for start in range(0, num_batches * size, size):
            ids = [f"{prefix}-{number}" for number in range(start, start + size)]
            store.append(StoredEvent(each, f"user-{prefix}", "item", "clicked", start, None) for each in ids)
            print(*ids, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], num_batches=int(sys.argv[4]), size=int(sys.argv[5]))
