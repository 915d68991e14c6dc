"""Questions and facts for ``short_facts``, the best known ones of a kind first. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """Facts that are asked for in the same words.

    Attributes:
        questions: Wordings; ``{0}`` is the subject, or with ``{1}`` the parts of it around a ``|``.
        response: The answer as a sentence, with ``{answer}``.
        facts: Answer by subject; what else is accepted follows it, each after a ``|``.
    """

    questions: tuple[str, ...]
    response: str
    facts: Mapping[str, str]


CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Spain": "Madrid", "Germany": "Berlin",
    "England": "London", "Russia": "Moscow", "China": "Beijing|Peking", "Egypt": "Cairo",
    "Greece": "Athens", "Canada": "Ottawa", "India": "New Delhi|Delhi", "Australia": "Canberra",
    "Ireland": "Dublin", "Portugal": "Lisbon", "Austria": "Vienna", "Sweden": "Stockholm", "Norway": "Oslo",
    "Poland": "Warsaw", "Turkey": "Ankara", "South Korea": "Seoul", "Argentina": "Buenos Aires",
    "Cuba": "Havana", "Thailand": "Bangkok", "Denmark": "Copenhagen", "Finland": "Helsinki",
    "Belgium": "Brussels", "Hungary": "Budapest", "the Netherlands": "Amsterdam", "Brazil": "Brasilia|Brasília",
    "the United States": "Washington", "Scotland": "Edinburgh", "Kenya": "Nairobi", "Peru": "Lima",
    "Chile": "Santiago", "Ukraine": "Kyiv|Kiev", "Iran": "Tehran|Teheran", "Iraq": "Baghdad",
    "Vietnam": "Hanoi", "Indonesia": "Jakarta", "Switzerland": "Bern|Berne", "Colombia": "Bogota|Bogotá",
    "Venezuela": "Caracas", "New Zealand": "Wellington", "Iceland": "Reykjavik|Reykjavík",
    "the Czech Republic": "Prague", "Romania": "Bucharest", "Bulgaria": "Sofia", "Croatia": "Zagreb",
    "Serbia": "Belgrade", "the Philippines": "Manila", "Malaysia": "Kuala Lumpur", "Pakistan": "Islamabad",
    "Saudi Arabia": "Riyadh", "Nepal": "Kathmandu|Katmandu", "Afghanistan": "Kabul", "Syria": "Damascus",
    "Lebanon": "Beirut", "Morocco": "Rabat", "Wales": "Cardiff",
}  # fmt: skip

OPPOSITES = {
    "hot": "cold", "big": "small|little|tiny", "up": "down", "happy": "sad|unhappy", "day": "night",
    "fast": "slow", "good": "bad|evil", "black": "white", "open": "closed|close|shut", "tall": "short",
    "left": "right", "light": "dark|heavy|darkness", "old": "young|new", "wet": "dry", "rich": "poor",
    "full": "empty", "hard": "soft|easy", "strong": "weak", "love": "hate|hatred", "early": "late",
    "true": "false|untrue", "clean": "dirty|unclean", "first": "last", "war": "peace", "inside": "outside",
    "loud": "quiet|soft|silent", "high": "low", "thick": "thin", "win": "lose", "start": "end|stop|finish",
    "buy": "sell", "north": "south", "east": "west", "push": "pull", "above": "below|beneath|under",
    "wide": "narrow", "sharp": "dull|blunt", "sweet": "sour|bitter", "deep": "shallow",
    "brave": "cowardly|coward|afraid|timid", "begin": "end|finish|stop", "summer": "winter",
    "alive": "dead", "asleep": "awake", "friend": "enemy|foe", "life": "death",
    "beautiful": "ugly", "cheap": "expensive|costly", "success": "failure", "arrive": "depart|leave",
    "remember": "forget", "always": "never", "accept": "reject|refuse|decline", "smooth": "rough|bumpy",
    "tight": "loose", "ancient": "modern|new", "maximum": "minimum", "laugh": "cry|weep", "increase": "decrease|reduce",
}  # fmt: skip

COLORS = {
    "the sky on a clear day": "blue", "grass": "green", "snow": "white", "a ripe banana": "yellow",
    "blood": "red", "coal": "black", "milk": "white", "a lemon": "yellow", "a carrot": "orange",
    "chocolate": "brown", "a tomato": "red", "a crow": "black", "an emerald": "green", "a flamingo": "pink",
    "a ruby": "red", "a fire truck": "red", "broccoli": "green", "an elephant": "gray|grey",
    "a strawberry": "red", "a pumpkin": "orange", "a school bus": "yellow", "a polar bear": "white",
    "a stop sign": "red", "spinach": "green", "a sunflower": "yellow", "a sapphire": "blue", "salt": "white",
    "a lime": "green", "an eggplant": "purple", "cotton": "white", "a cucumber": "green", "soot": "black",
    "a pea": "green", "the inside of a ripe watermelon": "red|pink", "a swan": "white", "coffee": "brown|black",
    "a canary": "yellow", "rice": "white", "tree bark": "brown|gray|grey", "a raven": "black",
}  # fmt: skip

DAYS = {
    "after Monday": "Tuesday", "after Friday": "Saturday", "before Sunday": "Saturday",
    "before Tuesday": "Monday", "after Saturday": "Sunday", "after Wednesday": "Thursday",
    "before Monday": "Sunday", "before Friday": "Thursday", "after Sunday": "Monday",
    "after Thursday": "Friday", "before Wednesday": "Tuesday", "before Saturday": "Friday",
    "after Tuesday": "Wednesday", "before Thursday": "Wednesday",
}  # fmt: skip

# None asks for May: as a word of a sentence ("it may be") it would be found by chance.
MONTHS = {
    "after January": "February", "after March": "April", "before December": "November",
    "before February": "January", "after November": "December", "after June": "July", "before August": "July",
    "before October": "September", "after August": "September", "after December": "January",
    "before April": "March", "before July": "June", "after February": "March", "after May": "June",
    "before November": "October", "before September": "August", "after July": "August",
    "after September": "October", "before March": "February", "before May": "April",
    "after October": "November", "before January": "December",
}  # fmt: skip

SOUNDS = {
    "moo": "cow|bull|cattle", "meow": "cat|kitten", "woof": "dog|puppy", "oink": "pig|hog", "quack": "duck",
    "baa": "sheep|lamb|goat", "neigh": "horse|pony", "cock-a-doodle-doo": "rooster|cockerel|chicken",
    "ribbit": "frog|toad", "roar": "lion|tiger|bear", "hoot": "owl", "hiss": "snake|cat", "buzz": "bee|fly|bumblebee",
    "cluck": "hen|chicken", "squeak": "mouse|mice", "hee-haw": "donkey|mule", "bow-wow": "dog|puppy",
    "gobble": "turkey", "tweet": "bird", "caw": "crow|raven", "howl": "wolf|dog|coyote", "chirp": "bird|cricket",
    "honk": "goose|geese", "purr": "cat|kitten",
}  # fmt: skip

BABIES = {
    "dog": "puppy|pup", "cat": "kitten|kitty", "cow": "calf", "sheep": "lamb", "horse": "foal|colt|filly",
    "bear": "cub", "duck": "duckling", "pig": "piglet", "chicken": "chick", "kangaroo": "joey",
    "lion": "cub", "deer": "fawn", "goat": "kid", "frog": "tadpole|froglet", "goose": "gosling", "swan": "cygnet",
    "wolf": "pup|cub|puppy", "elephant": "calf", "tiger": "cub", "seal": "pup", "rabbit": "bunny|kit|kitten",
    "whale": "calf", "fox": "cub|kit|pup", "penguin": "chick",
}  # fmt: skip

PEOPLE = {
    "teaches children at school": "teacher", "bakes bread": "baker", "puts out fires": "firefighter|fireman",
    "flies an airplane": "pilot", "grows crops": "farmer", "writes books": "author|writer",
    "paints pictures": "painter|artist", "sings songs": "singer|vocalist", "treats sick people": "doctor|physician",
    "fixes teeth": "dentist", "cuts hair": "barber|hairdresser|hairstylist", "dances": "dancer",
    "catches fish": "fisherman|fisher|angler", "travels into space": "astronaut|cosmonaut",
    "repairs water pipes": "plumber", "sells meat": "butcher", "treats sick animals": "veterinarian|vet",
    "drives a taxi": "taxi driver|driver|cabbie|cabdriver", "cooks in a restaurant": "chef|cook",
    "acts in movies": "actor|actress", "designs buildings": "architect", "takes photographs": "photographer",
    "plays the piano": "pianist", "plays the guitar": "guitarist", "makes furniture from wood": "carpenter",
    "works in a library": "librarian", "delivers mail": "mail carrier|mailman|postman|postal worker",
    "studies the stars": "astronomer", "defends people in court": "lawyer|attorney",
    "repairs cars": "mechanic", "writes poems": "poet", "makes clothes": "tailor|dressmaker|seamstress",
    "performs surgery": "surgeon", "performs magic tricks": "magician|illusionist",
    "plays the drums": "drummer", "rules a kingdom": "king|queen|monarch", "tells jokes on stage": "comedian|comic",
    "swims in races": "swimmer", "runs in races": "runner|racer|sprinter", "eats no meat": "vegetarian|vegan",
    "steals things": "thief|robber|burglar", "sells flowers": "florist", "plays the violin": "violinist",
    "serves food in a restaurant": "waiter|waitress|server",
}  # fmt: skip

PLURALS = {
    "child": "children", "mouse": "mice", "cat": "cats", "foot": "feet", "man": "men", "tooth": "teeth",
    "woman": "women", "goose": "geese", "dog": "dogs", "person": "people|persons", "box": "boxes",
    "baby": "babies", "leaf": "leaves", "city": "cities", "book": "books", "wolf": "wolves", "bus": "buses|busses",
    "knife": "knives", "car": "cars", "lady": "ladies", "house": "houses", "wife": "wives", "country": "countries",
    "apple": "apples", "dish": "dishes", "tree": "trees", "story": "stories", "glass": "glasses",
    "life": "lives", "potato": "potatoes", "fox": "foxes", "party": "parties", "tomato": "tomatoes",
    "watch": "watches", "half": "halves", "family": "families", "shelf": "shelves", "hero": "heroes",
    "thief": "thieves", "church": "churches", "cactus": "cacti|cactuses", "berry": "berries", "ox": "oxen",
    "loaf": "loaves", "class": "classes", "butterfly": "butterflies", "louse": "lice", "puppy": "puppies",
    "brush": "brushes", "bird": "birds",
}  # fmt: skip

LANGUAGES = {
    "France": "French", "Spain": "Spanish|Castilian", "Germany": "German", "Italy": "Italian", "Japan": "Japanese",
    "England": "English", "China": "Chinese|Mandarin", "Russia": "Russian", "Brazil": "Portuguese",
    "Mexico": "Spanish", "Portugal": "Portuguese", "Greece": "Greek", "the United States": "English",
    "Egypt": "Arabic", "Sweden": "Swedish", "Poland": "Polish", "Australia": "English", "Turkey": "Turkish",
    "Argentina": "Spanish", "Norway": "Norwegian", "Austria": "German", "South Korea": "Korean",
    "the Netherlands": "Dutch", "Denmark": "Danish", "Finland": "Finnish", "Hungary": "Hungarian",
    "Vietnam": "Vietnamese", "Thailand": "Thai", "Saudi Arabia": "Arabic", "Iran": "Persian|Farsi",
    "Colombia": "Spanish", "Ukraine": "Ukrainian", "Cuba": "Spanish", "Romania": "Romanian",
    "Chile": "Spanish", "Iceland": "Icelandic", "New Zealand": "English", "Bulgaria": "Bulgarian",
    "Iraq": "Arabic", "Croatia": "Croatian",
}  # fmt: skip

PAST_TENSES = {
    "go": "went", "eat": "ate", "run": "ran", "see": "saw", "take": "took", "write": "wrote", "give": "gave",
    "make": "made", "walk": "walked", "come": "came", "drink": "drank", "speak": "spoke", "swim": "swam",
    "buy": "bought", "sing": "sang", "think": "thought", "know": "knew", "play": "played", "bring": "brought",
    "drive": "drove", "sleep": "slept", "break": "broke", "fly": "flew", "begin": "began", "teach": "taught",
    "jump": "jumped", "find": "found", "catch": "caught", "grow": "grew", "tell": "told", "fall": "fell",
    "choose": "chose", "win": "won", "sit": "sat", "stand": "stood", "dance": "danced", "feel": "felt",
    "wear": "wore", "sell": "sold", "ride": "rode", "build": "built", "throw": "threw", "draw": "drew",
    "lose": "lost", "forget": "forgot", "pay": "paid", "steal": "stole", "send": "sent", "cook": "cooked",
    "meet": "met", "hold": "held", "wake": "woke", "fight": "fought", "freeze": "froze", "shake": "shook",
    "learn": "learned|learnt", "hide": "hid", "keep": "kept", "blow": "blew", "cry": "cried",
}  # fmt: skip

CONTINENTS = {
    "France": "Europe", "China": "Asia", "Brazil": "South America", "Kenya": "Africa", "Canada": "North America",
    "Japan": "Asia", "Germany": "Europe", "Argentina": "South America", "India": "Asia", "Nigeria": "Africa",
    "Italy": "Europe", "the United States": "North America", "Spain": "Europe", "Thailand": "Asia",
    "Peru": "South America", "Egypt": "Africa", "Mexico": "North America", "Poland": "Europe",
    "Vietnam": "Asia", "Ethiopia": "Africa", "Chile": "South America", "Sweden": "Europe", "Morocco": "Africa",
    "South Korea": "Asia", "Greece": "Europe", "Ghana": "Africa", "Norway": "Europe", "Colombia": "South America",
    "Pakistan": "Asia", "Portugal": "Europe", "Uganda": "Africa", "Iran": "Asia", "Austria": "Europe",
    "Venezuela": "South America", "Tanzania": "Africa", "Ireland": "Europe", "Nepal": "Asia",
    "Bolivia": "South America", "Belgium": "Europe", "Senegal": "Africa", "Denmark": "Europe", "Iraq": "Asia",
    "Switzerland": "Europe", "Malaysia": "Asia", "Finland": "Europe", "Mali": "Africa",
    "Mongolia": "Asia", "Uruguay": "South America",
}  # fmt: skip

SYNONYMS = {
    "big": "large|huge|great|enormous|giant|massive", "happy": "glad|joyful|cheerful|content|pleased|delighted",
    "fast": "quick|rapid|swift|speedy", "small": "little|tiny|miniature", "smart": "intelligent|clever|bright|wise",
    "sad": "unhappy|sorrowful|gloomy|miserable|melancholy", "begin": "start|commence|initiate",
    "beautiful": "pretty|lovely|gorgeous|attractive|stunning", "angry": "mad|furious|irate|enraged",
    "end": "finish|conclusion|stop|close|conclude|termination", "scared": "afraid|frightened|terrified|fearful",
    "rich": "wealthy|affluent|prosperous", "silent": "quiet|soundless|hushed|mute",
    "funny": "amusing|humorous|comical|hilarious", "tired": "exhausted|weary|sleepy|fatigued",
    "shout": "yell|scream|cry|holler", "sick": "ill|unwell|ailing", "hard": "difficult|tough|firm|solid|challenging",
    "easy": "simple|effortless|straightforward", "buy": "purchase|acquire", "help": "assist|aid|support|assistance",
    "strange": "odd|weird|unusual|peculiar|bizarre", "kind": "nice|gentle|caring|compassionate|friendly",
    "street": "road|avenue|lane", "house": "home|dwelling|residence", "gift": "present|donation",
    "error": "mistake|fault", "brave": "courageous|bold|fearless|valiant|heroic",
    "close": "near|shut|nearby", "correct": "right|accurate|true|proper", "hungry": "starving|famished|starved",
    "old": "ancient|aged|elderly", "speak": "talk|say|converse|communicate", "choose": "select|pick",
    "delicious": "tasty|yummy|scrumptious|delectable|flavorful", "infant": "baby|newborn",
    "dirty": "filthy|unclean|grimy|soiled|messy", "leap": "jump|hop|spring|bound",
    "calm": "peaceful|quiet|tranquil|serene|relaxed", "evil": "wicked|bad|sinister|malevolent|vile",
}  # fmt: skip

# Symbols that are English words or their endings (I, He, S of "it's") would be found by chance.
SYMBOLS = {
    "oxygen": "O", "hydrogen": "H", "gold": "Au", "carbon": "C", "iron": "Fe", "silver": "Ag", "sodium": "Na",
    "nitrogen": "N", "calcium": "Ca", "copper": "Cu", "potassium": "K", "zinc": "Zn", "aluminum": "Al",
    "chlorine": "Cl", "lead": "Pb", "neon": "Ne",
}  # fmt: skip

ELEMENTS = {
    "He": "helium", "Mg": "magnesium", "Hg": "mercury", "Si": "silicon", "Li": "lithium", "Sn": "tin",
    "Ni": "nickel", "U": "uranium", "S": "sulfur|sulphur", "P": "phosphorus", "Ti": "titanium", "Pt": "platinum",
    "I": "iodine", "Ar": "argon",
}  # fmt: skip

COUNTS = {
    "days|a week": "7|seven", "legs|a dog": "4|four", "months|a year": "12|twelve", "sides|a triangle": "3|three",
    "hours|a day": "24|twenty-four|twenty four", "legs|a spider": "8|eight", "minutes|an hour": "60|sixty",
    "wheels|a bicycle": "2|two", "seconds|a minute": "60|sixty", "sides|a square": "4|four",
    "wheels|a car": "4|four", "legs|an insect": "6|six", "days|a normal year": "365|three hundred sixty-five",
    "letters|the English alphabet": "26|twenty-six|twenty six", "wheels|a tricycle": "3|three",
    "players|a soccer team": "11|eleven", "arms|an octopus": "8|eight", "years|a century": "100|hundred",
    "seasons|a year": "4|four", "years|a decade": "10|ten", "eyes|a person": "2|two", "cents|a dollar": "100|hundred",
    "sides|a hexagon": "6|six", "wings|a bird": "2|two",
}  # fmt: skip

NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
SUMS = {f"{a} plus {b}": f"{a + b}|{NUMBERS[a + b]}" for a in range(2, 10) for b in range(2, a + 1)}
# Every third of them, none whose answer is already in the question (10 minus 5), and none that is one:
# that word would be found by chance.
DIFFERENCES = {
    f"{a} minus {b}": f"{a - b}|{NUMBERS[a - b]}"
    for a in range(5, 20)
    for b in range(2, min(a, 10))
    if (a + b) % 3 == 0 and a != 2 * b and a != b + 1
}

ARITHMETIC = ("What is {0}?", "How much is {0}?", "What does {0} equal?", "Can you work out {0}?")

KINDS = {
    "capital": Kind(
        (
            "What is the capital of {0}?",
            "Which city is the capital of {0}?",
            "Can you tell me the capital of {0}?",
            "What is the name of the capital city of {0}?",
        ),
        "The capital of {0} is {answer}.",
        CAPITALS,
    ),
    "opposite": Kind(
        (
            'What is the opposite of "{0}"?',
            'Which word means the opposite of "{0}"?',
            'Can you tell me the opposite of the word "{0}"?',
            "What is the opposite of {0}?",
        ),
        'The opposite of "{0}" is "{answer}".',
        OPPOSITES,
    ),
    "color": Kind(
        (
            "What color is {0}?",
            "What is the color of {0}?",
            "Which color is {0}?",
            "Can you tell me what color {0} is?",
        ),
        "The color of {0} is {answer}.",
        COLORS,
    ),
    "day": Kind(
        (
            "Which day comes {0}?",
            "What day of the week comes right {0}?",
            "What is the day {0}?",
            "Can you tell me which day of the week is {0}?",
        ),
        "The day {0} is {answer}.",
        DAYS,
    ),
    "month": Kind(
        (
            "Which month comes {0}?",
            "What month of the year comes right {0}?",
            "What is the month {0}?",
            "Can you tell me which month is {0}?",
        ),
        "The month {0} is {answer}.",
        MONTHS,
    ),
    "animal_sound": Kind(
        (
            'Which animal says "{0}"?',
            'What animal makes the sound "{0}"?',
            'Which animal goes "{0}"?',
            'If you hear "{0}", which animal is it?',
        ),
        'The animal that says "{0}" is the {answer}.',
        SOUNDS,
    ),
    "baby_animal": Kind(
        (
            "What is a baby {0} called?",
            "What do you call a baby {0}?",
            "What is the name for a baby {0}?",
            "What is the word for a young {0}?",
        ),
        "A baby {0} is called a {answer}.",
        BABIES,
    ),
    "person": Kind(
        (
            "What do you call a person who {0}?",
            "What is the word for someone who {0}?",
            "What is a person who {0} called?",
            "How do we call someone who {0}?",
        ),
        'The word for a person who {0} is "{answer}".',
        PEOPLE,
    ),
    "plural": Kind(
        (
            'What is the plural of "{0}"?',
            'What is the plural form of "{0}"?',
            "What is the plural of the word {0}?",
            'Can you tell me the plural of the noun "{0}"?',
        ),
        'The plural of "{0}" is "{answer}".',
        PLURALS,
    ),
    "language": Kind(
        (
            "What language do people speak in {0}?",
            "Which language is spoken in {0}?",
            "What is the main language of {0}?",
            "Which language do most people in {0} speak?",
        ),
        "People in {0} speak {answer}.",
        LANGUAGES,
    ),
    "past_tense": Kind(
        (
            'What is the past tense of "{0}"?',
            'What is the simple past of the verb "{0}"?',
            "What is the past tense of the verb {0}?",
            'Can you give me the past tense of "{0}"?',
        ),
        'The past tense of "{0}" is "{answer}".',
        PAST_TENSES,
    ),
    "continent": Kind(
        (
            "Which continent is {0} in?",
            "On which continent is {0}?",
            "What continent is {0} part of?",
            "Can you tell me which continent {0} belongs to?",
        ),
        "The continent of {0} is {answer}.",
        CONTINENTS,
    ),
    "synonym": Kind(
        (
            'What is a synonym of "{0}"?',
            'What is another word for "{0}"?',
            'Which other word means the same as "{0}"?',
            'Can you give me a synonym for the word "{0}"?',
        ),
        'Another word for "{0}" is "{answer}".',
        SYNONYMS,
    ),
    "symbol": Kind(
        (
            "What is the chemical symbol for {0}?",
            "Which chemical symbol stands for {0}?",
            "What is the symbol of the element {0}?",
            "Can you tell me the chemical symbol of {0}?",
        ),
        "The chemical symbol for {0} is {answer}.",
        SYMBOLS,
    ),
    "element": Kind(
        (
            "Which chemical element has the symbol {0}?",
            "What element does the chemical symbol {0} stand for?",
            "Which chemical element is written as {0}?",
            "What is the name of the element with the symbol {0}?",
        ),
        "The chemical element with the symbol {0} is {answer}.",
        ELEMENTS,
    ),
    "count": Kind(
        (
            "How many {0} does {1} have?",
            "How many {0} has {1} got?",
            "Do you know how many {0} {1} has?",
            "Can you tell me how many {0} {1} has?",
        ),
        "{1} has {answer} {0}.",
        COUNTS,
    ),
    "sum": Kind(ARITHMETIC, "{0} is {answer}.", SUMS),
    "difference": Kind(ARITHMETIC, "{0} is {answer}.", DIFFERENCES),
}
