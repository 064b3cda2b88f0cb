# Pure Python (calls, objects, comprehensions), json and re, for ever.
import json
import re


class Node:
    def __init__(self, left, right):
        self.left, self.right = left, right

    def check(self):
        return 1 + (self.left.check() + self.right.check() if self.left else 0)


def tree(depth):
    return Node(tree(depth - 1), tree(depth - 1)) if depth else Node(None, None)


def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def documents():
    text = json.dumps([{"name": f"n{i}", "values": list(range(i % 40)), "half": i / 2} for i in range(400)], indent=1)
    return sorted(json.loads(text), key=lambda item: (len(item["values"]), item["name"]))


def words():
    text = "the quick brown fox (1998) jumps over 12 lazy dogs at 10:45, " * 200
    found = re.findall(r"(\w+)\s+\((\d{4})\)|(\d+:\d+)", text)
    return len(found) + len(re.sub(r"\b([a-z])([a-z]+)", lambda match: match[2] + match[1], text))


while True:
    tree(12).check()
    fib(20)
    documents()
    words()
