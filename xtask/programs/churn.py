"""churn.py ROUNDS: what a Python service does all day: dictionaries, strings, JSON, sorting, comprehension."""
import json
import sys


class Request:
    def __init__(self, number):
        self.number = number
        self.headers = {f"header-{i}": f"value {number} of {i}" for i in range(8)}

    def body(self):
        return json.dumps({"number": self.number, "headers": self.headers, "items": list(range(self.number % 30))})


def main(rounds):
    kept, size = {}, 0
    for number in range(rounds):
        request = Request(number)
        answer = json.loads(request.body())
        kept[number % 2000] = sorted(answer["headers"].items(), key=lambda item: item[1])
        size += sum(len(name) + len(value) for name, value in kept[number % 2000])
    print(len(kept), size)


main(int(sys.argv[1]) if len(sys.argv) > 1 else 20000)
