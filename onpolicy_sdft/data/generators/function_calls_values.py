"""Values that several APIs of the catalogue share. Pure data."""

from __future__ import annotations

CITIES = (
    "Paris", "Tokyo", "Chicago", "Lisbon", "Nairobi", "Oslo",
    "Denver", "Madrid", "Seoul", "Cairo", "Toronto", "Vienna",
)  # fmt: skip
AIRPORTS = (
    "JFK", "LAX", "SFO", "ORD", "BOS", "SEA", "MIA",
    "LHR", "CDG", "FRA", "AMS", "NRT", "SIN", "DXB",
)  # fmt: skip
DATES = ("2024-03-15", "2024-07-02", "2024-11-28", "2025-01-09", "2025-05-21", "2025-10-04")
CLOCK = ("07:30", "09:00", "12:15", "16:45", "18:00", "21:30")
ARTISTS = ("Adele", "Queen", "Nina Simone", "Daft Punk", "Miles Davis", "Coldplay")
PEOPLE = ("Anna", "Carlos", "Mei", "David", "Priya", "Olga", "Sam")
CURRENCIES = ("USD", "EUR", "GBP", "JPY", "CAD", "CHF")
ROOMS = ("kitchen", "bedroom", "living room", "office", "hallway", "bathroom")
TEAMS = ("Lakers", "Yankees", "Bulls", "Red Sox", "Packers", "Rangers")
PRODUCTS = (
    "running shoes", "headphones", "coffee makers", "backpacks", "desk lamps", "winter jackets",
)  # fmt: skip
TICKERS = ("AAPL", "MSFT", "TSLA", "NVDA", "AMZN")
COUNTRIES = ("Canada", "Brazil", "Japan", "France", "Kenya")
FOODS = (
    ("eggs and spinach", ["eggs", "spinach"]),
    ("rice and beans", ["rice", "beans"]),
    ("potatoes, onions and cheese", ["potatoes", "onions", "cheese"]),
    ("tomatoes and pasta", ["tomatoes", "pasta"]),
    ("mushrooms, cream and leeks", ["mushrooms", "cream", "leeks"]),
)
