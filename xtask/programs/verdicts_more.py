"""More programs of python for `cargo xtask verdicts`: verdicts_more.py rooms SECONDS | wordlist SECONDS FOLDER"""
import asyncio
import json
import os
import random
import sys
import time


class Room:
    """People come, talk, and go; the last fifty things said are kept as long as somebody is there."""

    def __init__(self):
        self.people, self.said = {}, []

    def say(self, who, what):
        self.said = [*self.said[-49:], {"who": who, "what": what, "at": time.time()}]
        for queue in self.people.values():
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(self.said[-1])


async def person(name, rooms):
    number = random.randrange(12)
    room = rooms.setdefault(number, Room())
    queue = room.people[name] = asyncio.Queue(20)
    try:
        async with asyncio.timeout(random.uniform(0.5, 6)):
            while True:
                room.say(name, "word " * random.randrange(1, 20))
                heard = [await queue.get()]
                while not queue.empty():
                    heard.append(queue.get_nowait())
                json.loads(json.dumps(heard))
                await asyncio.sleep(random.uniform(0.1, 1))
    except TimeoutError:
        pass
    finally:
        del room.people[name]
        if not room.people and rooms.get(number) is room:
            del rooms[number]


async def rooms(end):
    """About eighty people at once, in a dozen rooms."""
    there, tasks, number = {}, set(), 0
    while time.monotonic() < end:
        task = asyncio.create_task(person(f"person {number}", there))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        number += 1
        await asyncio.sleep(random.expovariate(25))
    return number


def wordlist(end, folder):
    """Texts are split, words counted, and counts forgotten when a word was not seen for a while."""
    sys.path.insert(0, folder)
    import wordlist

    seen, turn = {}, 0
    while time.monotonic() < end:
        words = [f"word{random.randrange(5000)}" for _ in range(30)]
        words[0] = f'"{words[0]}"'
        for word in wordlist.split(" ".join(words)):
            seen[word] = seen.get(word, (0, turn))[0] + 1, turn
        if turn % 50 == 0:
            seen = {word: about for word, about in seen.items() if about[1] > turn - 200}
        turn += 1
        time.sleep(0.001)
    return turn


def main():
    end = time.monotonic() + float(sys.argv[2])
    done = asyncio.run(rooms(end)) if sys.argv[1] == "rooms" else wordlist(end, sys.argv[3])
    print("turns", done, flush=True)
    os._exit(0)


main()
