"""Words by category for ``word_categories``, the commonest ones. Pure data."""

from __future__ import annotations

WORDS: dict[str, tuple[str, ...]] = {
    "animal": (
        "dog", "cat", "horse", "cow", "sheep", "goat", "lion", "tiger", "bear", "wolf", "rabbit",
        "mouse", "monkey", "elephant", "giraffe", "zebra", "camel", "donkey", "squirrel", "frog",
        "snake", "turtle", "kangaroo", "dolphin",
    ),
    "fruit": (
        "apple", "banana", "pear", "cherry", "grape", "guava", "currant", "lychee", "mango",
        "melon", "strawberry", "raspberry", "blueberry", "pineapple", "apricot", "pomegranate",
        "gooseberry", "papaya", "fig", "grapefruit", "blackberry", "coconut", "watermelon",
        "nectarine",
    ),
    "color": (
        "red", "blue", "green", "yellow", "purple", "pink", "brown", "black", "white", "gray",
        "turquoise", "beige", "crimson", "maroon", "scarlet", "magenta", "cyan", "teal",
    ),
    "vehicle": (
        "car", "bus", "train", "truck", "bicycle", "motorcycle", "airplane", "helicopter", "boat",
        "ship", "tram", "taxi", "van", "tractor", "scooter", "ambulance", "submarine", "ferry",
    ),
    "piece of furniture": (
        "table", "chair", "sofa", "bed", "desk", "wardrobe", "bookshelf", "stool", "bench",
        "armchair", "cupboard", "dresser", "couch", "nightstand", "cabinet", "bookcase",
        "coffee table", "rocking chair",
    ),
    "musical instrument": (
        "piano", "guitar", "violin", "drum", "flute", "trumpet", "cello", "harp", "clarinet",
        "saxophone", "trombone", "banjo", "accordion", "ukulele", "oboe", "tuba", "harmonica",
        "xylophone",
    ),
    "profession": (
        "doctor", "teacher", "nurse", "lawyer", "baker", "farmer", "plumber", "pilot", "dentist",
        "carpenter", "engineer", "journalist", "butcher", "electrician", "firefighter", "architect",
        "librarian", "accountant",
    ),
    "country": (
        "France", "Japan", "Brazil", "Canada", "Egypt", "Italy", "Mexico", "India", "Kenya",
        "Norway", "Spain", "Germany", "Australia", "Argentina", "Poland", "Vietnam", "Greece",
        "Sweden",
    ),
    "piece of clothing": (
        "shirt", "jacket", "trousers", "skirt", "sweater", "coat", "scarf", "socks", "gloves",
        "jeans", "dress", "blouse", "hat", "shorts", "vest", "pajamas", "hoodie", "cardigan",
    ),
    "part of the body": (
        "arm", "leg", "nose", "ear", "mouth", "knee", "elbow", "shoulder", "finger", "neck",
        "foot", "ankle", "stomach", "chin", "wrist", "thumb", "hip", "forehead",
    ),
}  # fmt: skip
