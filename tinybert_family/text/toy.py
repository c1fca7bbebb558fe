"""A small language of our own, for tests and for machines that have no other text.

A document is a day in the life of one person: who, where, with which tool, animal and weather.
The words hang together as in real text, so that BERT's two tasks can be learned in seconds:
  facts       a baker is always found in a bakery, Milford always lies in Norland
  agreement   Anna ... she ... her; one loaf was, three loaves were
  context     person, town, job and animal stay the same through a document (does B follow A?)
  order       morning before evening, Monday before Tuesday, what was brought before what is left
Only integer arithmetic chooses, so every machine and every Python writes the same documents.
"""
import itertools
from typing import NamedTuple


class Document(NamedTuple):
    """What all of text/ passes on: sentences that belong together, and the name they go by."""
    name: str
    sentences: list[str]


WOMEN = "Anna Clara Emma Flora Hanna Julia Laura Maria Nora Rosa Sofia Vera".split()
MEN = "Adam Boris David Felix Hugo Ivan Jonas Leo Oscar Paul Simon Victor".split()
PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "his", "him")}    # Anna, Adam

# town: land, water, the known building
TOWNS = {
    "Milford": ("Norland", "river", "bridge"), "Ashby": ("Norland", "lake", "castle"),
    "Corvane": ("Norland", "sea", "harbour"), "Dunmore": ("Sudria", "river", "tower"),
    "Elmstead": ("Sudria", "lake", "mill"), "Farrow": ("Sudria", "sea", "lighthouse"),
    "Greyhill": ("Westmark", "river", "church"), "Holloway": ("Westmark", "lake", "museum"),
    "Kestrel": ("Westmark", "sea", "market")}

# job: place of work, tool, what is done, one product, many products
JOBS = {
    "baker": ("bakery", "tray", "bakes", "loaf", "loaves"),
    "painter": ("studio", "brush", "paints", "picture", "pictures"),
    "tailor": ("shop", "needle", "sews", "shirt", "shirts"),
    "farmer": ("field", "plough", "grows", "cabbage", "cabbages"),
    "potter": ("workshop", "clay", "shapes", "bowl", "bowls"),
    "writer": ("library", "pen", "writes", "book", "books"),
    "smith": ("forge", "hammer", "makes", "knife", "knives"),
    "fisher": ("boat", "net", "catches", "herring", "herrings"),
    "gardener": ("garden", "spade", "plants", "rose", "roses"),
    "carpenter": ("yard", "saw", "builds", "chair", "chairs")}

# animal: what it does, where it sleeps, what it eats
ANIMALS = {
    "dog": ("barks", "basket", "bones"), "cat": ("purrs", "window", "milk"),
    "horse": ("neighs", "stable", "hay"), "bird": ("sings", "cage", "seeds"),
    "sheep": ("bleats", "barn", "grass"), "duck": ("quacks", "pond", "worms")}
PETS = "Bella Coco Max Rex Tiger Minka Pluto Luna".split()
COLOURS = "white black brown grey spotted".split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
# weather: what is taken along, what happens to the streets
WEATHER = {
    "rain": ("umbrella", "wet"), "snow": ("coat", "white"), "wind": ("scarf", "empty"),
    "sun": ("hat", "warm"), "fog": ("lamp", "dark")}
NUMBERS = "no one two three four five".split()

# One line of variants per sentence of the story: paraphrases, of which each document draws one.
STORY = [
    ["{name} is a {job} and lives in {town}.", "{name} lives in {town} and works as a {job}.",
     "In the town of {town} lives a {job} called {name}."],
    ["{town} lies by the {water} in {land}.", "The town of {town} is in {land}, near the {water}."],
    ["Every visitor looks at the old {building} of {town}.",
     "{town} is known for its old {building}."],
    ["In the morning {she} goes to the {place} and takes {her} {tool}.",
     "Every morning {name} takes {her} {tool} and walks to the {place}."],
    ["With the {tool} {she} {makes} one {product} after another.",
     "There {she} {makes} {products} all day, as every {job} does."],
    ["{name} has a {colour} {animal} called {pet}.",
     "A {colour} {animal} called {pet} belongs to {name}."],
    ["When {pet} is happy, the {animal} {sounds}.", "{pet} {sounds}, as every {animal} does."],
    ["At night {pet} sleeps near the {bed} and dreams of {food}.",
     "{pet} eats {food} and sleeps near the {bed}."],
    ["On {day} there was {weather} in {town}, so {name} took {her} {thing}.",
     "On {day} {she} needed {her} {thing}, because there was {weather}."],
    ["The streets were {state} from the {weather}.", "The {weather} had made the streets {state}."],
    ["{name} had brought {brought} that day.", "That day {she} had {brought} with {whom}."],
    ["{name} sold {many} to {friend}, a {friendjob}.",
     "{friend}, a {friendjob}, came to the {place} and bought {many}."],
    ["{fhe} paid with {price} from the {fplace}.",
     "{fhe} had no money and gave {whom} {price} from the {fplace}."],
    ["In the evening {rest} left in the {place}.", "At the end of the day {rest} left."],
    ["On {tomorrow} the {weather} was gone and {name} left the {thing} at home.",
     "{tomorrow} came without {weather}, and the {thing} stayed at home."],
    ["That is why everyone in {town} knows {name} the {job} and {pet} the {animal}.",
     "So all of {town} likes {name} and the {animal} {pet}."]]


def mix(z):
    """splitmix64 (Steele, Lea and Flood, 2014): 64 bits in, 64 well-stirred bits out."""
    z %= 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def numbers(seed, index):
    """An endless stream of integers for one document; other documents have streams of their own."""
    start = mix(mix(seed) + index)
    for step in itertools.count(1):
        yield mix(start + step * 0x9E3779B97F4A7C15)


def count(n, one, many):
    """count(1, "loaf", "loaves") = "one loaf"."""
    return f"{NUMBERS[n]} {one if n == 1 else many}"


def story(draw):
    """The facts of one document: a word for every blank of STORY."""
    def pick(options):
        return list(options)[next(draw) % len(options)]

    name = pick(WOMEN + MEN)
    friend = pick([other for other in WOMEN + MEN if other != name])
    she, her, whom = PRONOUNS["she" if name in WOMEN else "he"]
    fhe = "She" if friend in WOMEN else "He"
    job, town, animal, weather = pick(JOBS), pick(TOWNS), pick(ANIMALS), pick(WEATHER)
    place, tool, makes, product, products = JOBS[job]
    land, water, building = TOWNS[town]
    sounds, bed, food = ANIMALS[animal]
    thing, state = WEATHER[weather]
    pet, colour = pick(PETS), pick(COLOURS)
    friendjob = pick([other for other in JOBS if other != job])
    fplace, _, _, fproduct, fproducts = JOBS[friendjob]
    price = count(1 + next(draw) % 3, fproduct, fproducts)
    # What was brought less what was sold is left: the reader can count along.
    sold, left = 1 + next(draw) % 3, next(draw) % 3
    brought = count(sold + left, product, products)
    many = count(sold, product, products)
    rest = count(left, product, products) + (" was" if left == 1 else " were")
    today = next(draw) % 7
    day, tomorrow = DAYS[today], DAYS[(today + 1) % 7]
    return {blank: word for blank, word in locals().items() if isinstance(word, str)}


def documents(count=200, seed=0):
    """`count` documents; a larger count begins with the same ones."""
    result = []
    for index in range(count):
        draw = numbers(seed, index)
        facts = story(draw)
        lines = [variants[next(draw) % len(variants)].format(**facts) for variants in STORY]
        result.append(Document(f"toy {index}", [line[0].upper() + line[1:] for line in lines]))
    return result
