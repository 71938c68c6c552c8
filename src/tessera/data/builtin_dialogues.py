"""Small conversations that every machine has: what a first assistant should be able to say.

Greetings, who it is and what it cannot know, sorting, counting, spelling backwards, opposites, units, the calendar, a few facts,
rewriting, lists and sums; in one turn, or in several, some of which go on from the turn before. Every answer follows from its
question by a rule that stands here, so that a test can judge it; wordings and words are drawn at random.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from typing import Any

from tessera.data.builtin_wordings import OPPOSITES

DIALOGUES = 8_000
"""That `builtin:dialogues` holds where no count is named."""
MOST_TURNS = 3

Turn = tuple[str, str]
"""What the user says, and the answer."""

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = {
    "January": 31, "February": 28, "March": 31, "April": 30, "May": 31, "June": 30, "July": 31, "August": 31, "September": 30,
    "October": 31, "November": 30, "December": 31,
}  # fmt: skip
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Austria": "Vienna", "Greece": "Athens",
    "Portugal": "Lisbon", "Poland": "Warsaw", "Norway": "Oslo", "Sweden": "Stockholm", "Denmark": "Copenhagen",
    "Finland": "Helsinki", "Ireland": "Dublin", "Egypt": "Cairo", "Kenya": "Nairobi", "Japan": "Tokyo", "China": "Beijing",
    "India": "New Delhi", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago", "Canada": "Ottawa", "Iceland": "Reykjavik",
}  # fmt: skip
THINGS = {
    "fruits": "apple, pear, plum, cherry, fig, grape, melon, lemon, peach, banana",
    "colours": "red, blue, green, yellow, orange, purple, black, white, brown, grey",
    "animals": "cat, dog, horse, cow, sheep, goat, mouse, bear, fox, wolf, hen, duck",
    "tools": "hammer, saw, drill, file, spade, rake, axe, knife, ladder, brush",
    "vegetables": "carrot, bean, pea, onion, leek, potato, tomato, cabbage, pepper, beet",
    "pieces of furniture": "table, chair, bed, sofa, shelf, desk, bench, lamp, stool, chest",
}
LEGS = {"cat": 4, "dog": 4, "horse": 4, "cow": 4, "hen": 2, "duck": 2, "spider": 8, "ant": 6, "bee": 6, "fish": 0, "snake": 0}
UNITS = {
    ("minutes", "hour"): 60, ("seconds", "minute"): 60, ("hours", "day"): 24, ("days", "week"): 7, ("months", "year"): 12,
    ("centimetres", "metre"): 100, ("millimetres", "centimetre"): 10, ("metres", "kilometre"): 1000, ("grams", "kilogram"): 1000,
    ("cents", "euro"): 100,
}  # fmt: skip
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
WORDS = tuple(word for words in THINGS.values() for word in words.split(", "))
_SUBJECTS, _VERBS = ("I", "You", "We", "They"), ("walk", "talk", "work", "play", "cook", "paint", "jump", "wait", "look", "help")
_PLACES = ("at home", "in the garden", "with a friend", "every day", "by the sea", "in the rain")

_GREETINGS = ("Hi", "Hi!", "Hello", "Hello!", "Hey", "Good morning!", "Good evening.", "Hello there", "Greetings!")
_WELCOMES = ("Hello! What can I do for you?", "Hi! How can I help?", "Hello! Ask me something small.")
_WHO = ("Who are you?", "What are you?", "Tell me about yourself.", "Introduce yourself.", "What is your name?")
_IS = "I am a small language model that Tessera trained. I know a few things and make mistakes."
_CAN = ("What can you do?", "How can you help me?", "What are you good at?", "What may I ask you?")
_DOES = "I can sort, count, spell backwards, name opposites, change units, do small sums and tell a few facts."
_HUMAN = ("Are you human?", "Are you a person?", "Are you alive?", "Do you have feelings?")
_PROGRAM = "No, I am a program."
_THANKS = ("Thank you!", "Thanks", "Thanks a lot.", "Great, thank you.", "That helps, thanks!")
_PLEASURE = ("You are welcome.", "Gladly.", "My pleasure.")
_BYES = ("Bye", "Goodbye!", "See you later.", "Good night!")
_BYE = ("Goodbye!", "Bye! Come again.")
_UNKNOWN = (
    "What is the weather like today?", "What is in the news?", "What time is it?", "Where am I?", "What did I eat yesterday?",
    "Who will win tomorrow?", "How much is a share of it worth now?", "What am I thinking of?", "Call my mother.",
    "Open the door.", "Send an email for me.", "What is the score?", "Is it raining outside?", "Which day is it today?",
)  # fmt: skip
_CANNOT = "I cannot know or do that: I see only what you write to me."


def examples(count: int, seed: int = 0, without: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """Lines as `posttrain sft` reads them; `without`: names of KINDS that are not asked."""
    kinds = [kind for kind in KINDS if kind not in without]
    dice = random.Random(f"dialogues {seed}")
    for _ in range(count):
        turns: list[Turn] = []
        while len(turns) < 1 or (len(turns) < MOST_TURNS and dice.random() < 0.35):
            kind = dice.choice(kinds)
            turns += KINDS[kind](dice)
        messages = []
        for asked, answer in turns:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        yield {"messages": messages}


def _chat(dice: random.Random) -> list[Turn]:
    return [
        dice.choice([
            (dice.choice(_GREETINGS), dice.choice(_WELCOMES)), (dice.choice(_WHO), _IS), (dice.choice(_CAN), _DOES),
            (dice.choice(_HUMAN), _PROGRAM), (dice.choice(_THANKS), dice.choice(_PLEASURE)),
            (dice.choice(_BYES), dice.choice(_BYE)),
        ])
    ]  # fmt: skip


def _unknown(dice: random.Random) -> list[Turn]:
    return [(dice.choice(_UNKNOWN), _CANNOT)]


def _sort(dice: random.Random) -> list[Turn]:
    if dice.random() < 0.5:
        words = dice.sample(WORDS, dice.randint(3, 5))
        asked = dice.choice(("Sort these words: {}.", "Put in order: {}.", "Sort by the alphabet: {}."))
        return _turned(asked.format(", ".join(words)), sorted(words), dice)
    numbers = dice.sample(range(1, 100), dice.randint(3, 5))
    asked = dice.choice(("Sort these numbers: {}.", "Put in order: {}.", "From small to large: {}."))
    return _turned(asked.format(", ".join(map(str, numbers))), [str(number) for number in sorted(numbers)], dice)


def _turned(asked: str, ordered: list[str], dice: random.Random) -> list[Turn]:
    """A sorted list, and sometimes the other way round."""
    turns = [(asked, ", ".join(ordered) + ".")]
    if dice.random() < 0.2:
        turns.append((dice.choice(("And the other way round?", "Now backwards, please.")), ", ".join(ordered[::-1]) + "."))
    return turns


def _count(dice: random.Random) -> list[Turn]:
    if dice.random() < 0.5:
        word = dice.choice(WORDS)
        asked = dice.choice(("How many letters has {}?", "How many letters are in {}?", "Count the letters of {}."))
        return [(asked.format(word), f"{len(word)}.")]
    words = dice.sample(WORDS, dice.randint(2, 6))
    asked = dice.choice(("How many words are these: {}?", "Count the words: {}."))
    return [(asked.format(" ".join(words)), f"{len(words)}.")]


def _spell(dice: random.Random) -> list[Turn]:
    word = dice.choice(WORDS)
    way, answer = dice.choice([
        (("Spell {} backwards.", "Write {} backwards.", "{} in reverse, please."), word[::-1]),
        (("Spell {}.", "How is {} spelled?"), " ".join(word)),
        (("Write {} in capitals.", "{} in large letters, please."), word.upper()),
        (("What is the first letter of {}?", "Which letter does {} begin with?"), word[0]),
    ])  # fmt: skip
    return [(dice.choice(way).format(word), f"{answer}.")]


def _opposite(dice: random.Random) -> list[Turn]:
    word = dice.choice(list(OPPOSITES))
    asked = dice.choice(("What is the opposite of {}?", "The opposite of {}?", "Tell me the contrary of {}."))
    turns = [(asked.format(word), f"{OPPOSITES[word]}.")]
    if dice.random() < 0.25:
        other = dice.choice(list(OPPOSITES))
        turns.append((f"And of {other}?", f"{OPPOSITES[other]}."))
    return turns


def _units(dice: random.Random) -> list[Turn]:
    small, large = dice.choice(list(UNITS))
    times = dice.randint(1, 9)
    several = f"{times} {large}{'s' if times > 1 else ''}"
    asked = dice.choice(("How many {} are {}?", "How many {} are in {}?")).format(small, several)
    return [(asked, f"{several} {'are' if times > 1 else 'is'} {times * UNITS[small, large]} {small}.")]


def _calendar(dice: random.Random) -> list[Turn]:
    day, month = dice.randrange(7), dice.choice(list(MONTHS))
    place = list(MONTHS).index(month)
    return [
        dice.choice([
            (f"Which day comes after {DAYS[day]}?", f"{DAYS[(day + 1) % 7]}."),
            (f"Which day is before {DAYS[day]}?", f"{DAYS[day - 1]}."),
            (f"Which month comes after {month}?", f"{list(MONTHS)[(place + 1) % 12]}."),
            (f"How many days has {month}?", f"{MONTHS[month]}, and 29 in a leap year." if place == 1 else f"{MONTHS[month]}."),
        ])
    ]  # fmt: skip


def _facts(dice: random.Random) -> list[Turn]:
    country, animal, group = dice.choice(list(CAPITALS)), dice.choice(list(LEGS)), dice.choice(list(THINGS))
    word = dice.choice(THINGS[group].split(", "))
    one, legs = "an" if animal == "ant" else "a", NUMBERS[LEGS[animal]] if LEGS[animal] else "no"
    return [
        dice.choice([
            (dice.choice(("What is the capital of {}?", "Name the capital of {}.")).format(country), f"{CAPITALS[country]}."),
            (f"Where is {CAPITALS[country]}?", f"In {country}."),
            (f"How many legs has {one} {animal}?", f"{one.capitalize()} {animal} has {legs} legs."),
            (f"Is {word} among {group} or among {_other(group, dice)}?", f"Among {group}."),
        ])
    ]  # fmt: skip


def _other(group: str, dice: random.Random) -> str:
    return dice.choice([name for name in THINGS if name != group])


def _rewrite(dice: random.Random) -> list[Turn]:
    subject, verb, place = dice.choice(_SUBJECTS), dice.choice(_VERBS), dice.choice(_PLACES)
    sentence = f"{subject} {verb} {place}."
    low = subject if subject == "I" else subject.lower()
    return [
        dice.choice([
            (f"Put this into the past: {sentence}", f"{subject} {verb}ed {place}."),
            (f"Make this a question: {sentence}", f"Do {low} {verb} {place}?"),
            (f"Say the contrary: {sentence}", f"{subject} do not {verb} {place}."),
            (f"Write in capitals: {sentence}", sentence.upper()),
        ])
    ]  # fmt: skip


def _list(dice: random.Random) -> list[Turn]:
    group, count = dice.choice(list(THINGS)), dice.randint(2, 4)
    chosen = dice.sample(THINGS[group].split(", "), count)
    asked = dice.choice(("Name {} {}.", "Give me {} {}.", "List {} {}, please.")).format(NUMBERS[count], group)
    return [(asked, ", ".join(chosen) + ".")]


def _sum(dice: random.Random) -> list[Turn]:
    a, b = dice.randint(0, 20), dice.randint(0, 20)
    if dice.random() < 0.5:
        return [(dice.choice(("What is {} plus {}?", "{} + {}?", "Add {} and {}.")).format(a, b), f"{a + b}.")]
    a, b = max(a, b), min(a, b)
    return [(dice.choice(("What is {} minus {}?", "{} - {}?")).format(a, b), f"{a - b}.")]


KINDS: dict[str, Callable[[random.Random], list[Turn]]] = {
    "chat": _chat, "unknown": _unknown, "sort": _sort, "count": _count, "spell": _spell, "opposite": _opposite, "units": _units,
    "calendar": _calendar, "facts": _facts, "rewrite": _rewrite, "list": _list, "sum": _sum,
}  # fmt: skip
"""What is asked -> what makes one turn of it, or two that belong together."""
