"""The APIs behind ``function_calls`` and the questions people ask of them. Pure data.

Every API has eight questions; of an API seen in training the last two are held out, one for
validation and one for test. A slot ``{name}`` takes a value of the parameter ``name``; a value
written ``(words, value)`` appears as words in the question and as the value in the call.
``Question.fixed`` holds arguments that the sentence implies without a slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onpolicy_sdft.data.generators.function_calls_values import (
    AIRPORTS,
    ARTISTS,
    CITIES,
    CLOCK,
    COUNTRIES,
    CURRENCIES,
    DATES,
    FOODS,
    PEOPLE,
    PRODUCTS,
    ROOMS,
    TEAMS,
    TICKERS,
)


@dataclass(frozen=True)
class Parameter:
    """One parameter of an API and the values that questions draw on."""

    type: str
    description: str
    values: tuple[Any, ...] = ()  # empty when only fixed arguments use it
    required: bool = False


@dataclass(frozen=True)
class Question:
    """One way to ask for the API."""

    text: str
    fixed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Api:
    """A function that can be called, and how people ask for it."""

    name: str
    description: str
    parameters: Mapping[str, Parameter]
    questions: tuple[Question, ...]


def need(type_: str, description: str, *values: Any) -> Parameter:
    """A required parameter."""
    return Parameter(type_, description, values, required=True)


def may(type_: str, description: str, *values: Any) -> Parameter:
    """An optional parameter."""
    return Parameter(type_, description, values)


def ask(text: str, **fixed: Any) -> Question:
    """A question, with the arguments that it implies."""
    return Question(text, fixed)


SEEN: tuple[Api, ...] = (
    Api(
        "weather.get_forecast",
        "Get the weather forecast of a city for the coming days.",
        {
            "city": need("string", "Name of the city", *CITIES),
            "days": need("integer", "Number of days to forecast, 1 to 14", 2, 3, 5, 7, 10),
            "units": may(
                "string",
                "Temperature scale, one of 'celsius', 'fahrenheit'",
                ("Celsius", "celsius"),
                ("Fahrenheit", "fahrenheit"),
            ),
        },
        (
            ask("What will the weather be like in {city} over the next {days} days?"),
            ask("I'm packing for {days} days in {city}. Show me the forecast in {units}, please."),
            ask("Give me a {days}-day forecast for {city}."),
            ask("Is it going to rain in {city} tomorrow?", days=1),
            ask("Can I see the temperatures in {units} for {city}, {days} days ahead?"),
            ask("We leave for {city} soon and stay a week. How will the weather be?", days=7),
            ask("How's {city} looking, weather-wise, for the coming {days} days?"),
            ask("I need {units} readings: what's the {days} day outlook for {city}?"),
        ),
    ),
    Api(
        "flights.search",
        "Search for flights between two airports on a given date.",
        {
            "origin": need("string", "Airport code of departure", *AIRPORTS[:7]),
            "destination": need("string", "Airport code of arrival", *AIRPORTS[7:]),
            "date": need("string", "Date of departure, YYYY-MM-DD", *DATES),
            "passengers": may("integer", "Number of travellers", 2, 3, 4),
            "nonstop": may("boolean", "True for direct flights only"),
        },
        (
            ask("Find me a flight from {origin} to {destination} on {date}."),
            ask("There are {passengers} of us flying {origin} to {destination} on {date}."),
            ask("I need to be in {destination} on {date}, starting from {origin}. What's there?"),
            ask(
                "Any direct flights from {origin} to {destination} on {date}? I hate layovers.",
                nonstop=True,
            ),
            ask("On {date} we want to go to {destination}. {passengers} seats from {origin}."),
            ask("Look up {date} departures out of {origin} heading to {destination}."),
            ask("Which planes go to {destination} from {origin} on {date}?"),
            ask(
                "Without stopovers please: {origin} - {destination}, {passengers} people, {date}.",
                nonstop=True,
            ),
        ),
    ),
    Api(
        "music.play",
        "Play a song or an artist on a speaker.",
        {
            "artist": need("string", "Name of the artist", *ARTISTS),
            "shuffle": may("boolean", "True to play in random order"),
            "volume": may("integer", "Volume from 0 to 100", 20, 35, 50, 80),
            "room": may("string", "Room of the speaker", *ROOMS),
        },
        (
            ask("Play some {artist}."),
            ask("I'd like to hear {artist} in the {room}."),
            ask("Put on {artist} at volume {volume}, please."),
            ask("Shuffle songs by {artist} in the {room}.", shuffle=True),
            ask("Could you start {artist} for me and set the sound to {volume}?"),
            ask("In the {room}, {artist} at {volume} percent volume would be lovely."),
            ask("Let's listen to {artist} now, with the volume at {volume}."),
            ask("Mix up the {artist} tracks for me in the {room}.", shuffle=True),
        ),
    ),
    Api(
        "bank.transfer",
        "Transfer money from the user's account to a person.",
        {
            "recipient": need("string", "Name of the person who gets the money", *PEOPLE),
            "amount": need("number", "Amount of money", 20, 45, 75.5, 120, 250),
            "currency": may("string", "Three-letter currency code", *CURRENCIES),
            "note": may("string", "Message for the recipient", "rent", "lunch", "concert tickets"),
        },
        (
            ask("Send {amount} to {recipient}."),
            ask("I owe {recipient} {amount} {currency}, transfer it please."),
            ask("Pay {recipient} {amount} with the note '{note}'."),
            ask("Can you move {amount} {currency} over to {recipient}?"),
            ask("{recipient} should get {amount} from me; write '{note}' as the message."),
            ask("Transfer {amount} {currency} to {recipient} and mark it '{note}'."),
            ask("Please wire {amount} to {recipient} right away."),
            ask("Time to pay {recipient}: {amount} {currency}, note '{note}'."),
        ),
    ),
    Api(
        "home.set_thermostat",
        "Set the temperature of a room.",
        {
            "room": need("string", "Name of the room", *ROOMS),
            "temperature": need("number", "Target temperature", 18, 19.5, 20, 21, 22.5),
            "hours": may("integer", "How long to hold the temperature, in hours", 2, 3, 6),
        },
        (
            ask("Set the {room} to {temperature} degrees."),
            ask("It's freezing in the {room}! Make it {temperature}."),
            ask("Keep the {room} at {temperature} degrees for the next {hours} hours."),
            ask("Could you warm up the {room} to {temperature}?"),
            ask("For {hours} hours I want {temperature} degrees in the {room}."),
            ask("Change the thermostat in the {room}: {temperature} degrees."),
            ask("I'd like the {room} to be {temperature} degrees."),
            ask("Hold {temperature} degrees in the {room}, {hours} hours should do."),
        ),
    ),
    Api(
        "calendar.create_event",
        "Add an event to the user's calendar.",
        {
            "title": need("string", "Title of the event", "Dentist", "Team lunch", "Yoga class"),
            "date": need("string", "Date of the event, YYYY-MM-DD", *DATES),
            "time": need("string", "Start time, HH:MM in 24-hour form", *CLOCK),
            "attendees": may(
                "array",
                "Names of the people to invite",
                ("Anna and Ben", ["Anna", "Ben"]),
                ("Maria, Tom and Lee", ["Maria", "Tom", "Lee"]),
                ("Sofia", ["Sofia"]),
            ),
        },
        (
            ask("Put '{title}' in my calendar on {date} at {time}."),
            ask("On {date} at {time} I have '{title}'. Please add it."),
            ask("Schedule '{title}' for {date}, {time}, and invite {attendees}."),
            ask("Don't let me forget '{title}', {date} at {time}."),
            ask("Book '{title}' with {attendees} on {date} at {time}."),
            ask("Block {time} on {date} for '{title}'."),
            ask("New event: '{title}', starts at {time} on {date}."),
            ask("Invite {attendees} to '{title}'. It's on {date} and begins at {time}."),
        ),
    ),
    Api(
        "maps.get_directions",
        "Get directions between two places.",
        {
            "start": need("string", "Place to start from", *CITIES[:6]),
            "end": need("string", "Place to go to", *CITIES[6:]),
            "mode": may(
                "string",
                "Means of travel, one of 'driving', 'cycling', 'transit'",
                ("by car", "driving"),
                ("by bike", "cycling"),
                ("on public transport", "transit"),
            ),
            "avoid_tolls": may("boolean", "True to avoid toll roads"),
        },
        (
            ask("How do I get from {start} to {end}?"),
            ask("Directions from {start} to {end} {mode}, please."),
            ask("I'm going from {start} to {end} {mode}. What's the route?"),
            ask("Show me the way to {end} from {start} without toll roads.", avoid_tolls=True),
            ask("What's the best route to {end} if I set off in {start}?"),
            ask("I want to reach {end} {mode}, and I'm in {start} right now."),
            ask("Navigate to {end}; I start in {start}."),
            ask("From {start} to {end} {mode}, but I don't want to pay tolls.", avoid_tolls=True),
        ),
    ),
    Api(
        "image.resize",
        "Change the size of an image.",
        {
            "file": need("string", "Name of the image file", "cat.png", "team.jpg", "logo.png"),
            "width": need("integer", "New width in pixels", 640, 800, 1024, 1920),
            "height": need("integer", "New height in pixels", 480, 600, 768, 1080),
            "keep_ratio": may("boolean", "Whether to keep the proportions"),
        },
        (
            ask("Resize {file} to {width} by {height}."),
            ask("I need {file} to be {width} pixels wide and {height} pixels high."),
            ask("Make {file} {height} px tall and {width} px wide."),
            ask(
                "Scale {file} to {width}x{height}, but don't distort it: keep the proportions.",
                keep_ratio=True,
            ),
            ask("Can {file} be brought to {width}x{height}?"),
            ask("{file} is too big. {width} by {height} pixels would be right."),
            ask("Change the size of {file}: {width} in width and {height} in height."),
            ask(
                "Fit {file} into {width} by {height}. It doesn't matter if the proportions change.",
                keep_ratio=False,
            ),
        ),
    ),
    Api(
        "sports.get_score",
        "Get the result of a team's game.",
        {
            "team": need("string", "Name of the team", *TEAMS),
            "date": may("string", "Date of the game, YYYY-MM-DD; default is the last game", *DATES),
            "include_stats": may("boolean", "True to add player statistics"),
        },
        (
            ask("How did the {team} do in their last game?"),
            ask("What was the score when the {team} played on {date}?"),
            ask("Did the {team} win?"),
            ask("Show me the {team} result from {date} with player stats.", include_stats=True),
            ask("I missed the {team} game on {date}, how did it end?"),
            ask("Latest {team} score, and the player statistics as well.", include_stats=True),
            ask("Tell me how the game of the {team} went on {date}."),
            ask("Who scored for the {team}? I want the result with statistics.", include_stats=True),
        ),
    ),
    Api(
        "shop.search_products",
        "Search the shop for products.",
        {
            "query": need("string", "What to look for", *PRODUCTS),
            "max_price": may("number", "Highest price in dollars", 30, 49.99, 80, 150),
            "sort_by": may(
                "string",
                "Order of the results, one of 'price', 'rating', 'newest'",
                ("price", "price"),
                ("rating", "rating"),
            ),
            "in_stock": may("boolean", "True to show only what can be delivered now"),
        },
        (
            ask("I'm looking for {query}."),
            ask("Show me {query} under {max_price} dollars."),
            ask("Find {query} sorted by {sort_by}."),
            ask("Which {query} do you have in stock right now?", in_stock=True),
            ask("I can spend {max_price} dollars on {query}. List them by {sort_by}."),
            ask("Do you sell {query}? Not more than {max_price} dollars, please."),
            ask("Let me see your {query}, ordered by {sort_by}."),
            ask("{query} for up to {max_price} dollars that you can ship now.", in_stock=True),
        ),
    ),
    Api(
        "restaurant.book_table",
        "Book a table at a restaurant.",
        {
            "restaurant": need("string", "Name of the restaurant", "Luigi's", "Blue Lotus", "The Old Mill"),
            "guests": need("integer", "Number of people", 2, 4, 5, 6),
            "time": need("string", "Time, HH:MM in 24-hour form", "18:30", "19:00", "20:15"),
            "outdoor": may("boolean", "True for a table outside"),
        },
        (
            ask("Book a table for {guests} at {restaurant} at {time}."),
            ask("We are {guests} people and would like to eat at {restaurant}, {time}."),
            ask("Reserve {restaurant} at {time}, {guests} of us are coming."),
            ask("A table outside at {restaurant} for {guests}, {time} please.", outdoor=True),
            ask("Can you get us into {restaurant} at {time}? We're {guests}."),
            ask("I want to take my wife to {restaurant} at {time}. Just us two.", guests=2),
            ask("At {time} I'd like a table at {restaurant}, {guests} persons."),
            ask(
                "{guests} of us want to sit in the garden at {restaurant}, around {time}.",
                outdoor=True,
            ),
        ),
    ),
    Api(
        "translate.text",
        "Translate a text into another language.",
        {
            "text": need("string", "Text to translate", "Good morning", "Where is the station?", "Thank you"),
            "target": need("string", "Language to translate into", "French", "Italian", "Korean"),
            "formal": may("boolean", "True for formal speech, False for informal"),
        },
        (
            ask("How do you say '{text}' in {target}?"),
            ask("Translate '{text}' into {target}."),
            ask("What is {target} for '{text}'? I need the polite, formal version.", formal=True),
            ask("I want to write '{text}' to a friend in {target}, informally.", formal=False),
            ask("Please put '{text}' into {target} for me."),
            ask("My neighbour only speaks {target}. I want to tell her '{text}'."),
            ask("Give me '{text}' in {target}."),
            ask("Turn '{text}' into formal {target}, it's for a business letter.", formal=True),
        ),
    ),
    Api(
        "stocks.get_price",
        "Get the price of a stock.",
        {
            "symbol": need("string", "Ticker symbol", *TICKERS),
            "date": may("string", "Date, YYYY-MM-DD; default is today", *DATES),
            "currency": may("string", "Three-letter currency code", *CURRENCIES),
        },
        (
            ask("What is {symbol} trading at?"),
            ask("How much was a share of {symbol} on {date}?"),
            ask("Price of {symbol} in {currency}, please."),
            ask("I'd like to know what {symbol} cost in {currency} on {date}."),
            ask("Check {symbol} for me."),
            ask("Back on {date}, where did {symbol} stand?"),
            ask("Can you tell me the current {symbol} price in {currency}?"),
            ask("Look up the {date} price of {symbol}."),
        ),
    ),
    Api(
        "email.send",
        "Send an email.",
        {
            "to": need("string", "Email address", "anna@mail.com", "boss@work.org", "sam@web.net"),
            "subject": need("string", "Subject line", "Meeting notes", "Vacation", "Invoice 42"),
            "body": need("string", "Text of the email", "See you soon", "Please call me", "Thanks"),
            "urgent": may("boolean", "True to mark the email as urgent"),
        },
        (
            ask("Email {to} with the subject '{subject}' and the text '{body}'."),
            ask("Write to {to}: subject '{subject}', message '{body}'."),
            ask("Send '{body}' to {to}, the subject should be '{subject}'."),
            ask("Urgent mail to {to}! Subject '{subject}', body '{body}'.", urgent=True),
            ask("I want to send {to} an email called '{subject}' that says '{body}'."),
            ask("Under the subject '{subject}', mail '{body}' to {to}."),
            ask("Please drop {to} a line, titled '{subject}': '{body}'."),
            ask(
                "Mark this as urgent and mail it to {to}: '{body}', subject '{subject}'.",
                urgent=True,
            ),
        ),
    ),
    Api(
        "recipes.find",
        "Find recipes that use given ingredients.",
        {
            "ingredients": need("array", "Ingredients to use", *FOODS),
            "max_minutes": may("integer", "Longest cooking time in minutes", 15, 20, 30, 45),
            "vegetarian": may("boolean", "True for vegetarian recipes only"),
        },
        (
            ask("What can I cook with {ingredients}?"),
            ask("I have {ingredients} and only {max_minutes} minutes."),
            ask("Give me vegetarian recipes with {ingredients}.", vegetarian=True),
            ask("Find something to make out of {ingredients}."),
            ask("Dinner has to be ready in {max_minutes} minutes. I only have {ingredients}."),
            ask("We don't eat meat. Any ideas for {ingredients}?", vegetarian=True),
            ask("My fridge holds {ingredients}; which recipes fit?"),
            ask(
                "A meatless meal from {ingredients} that takes {max_minutes} minutes at most?",
                vegetarian=True,
            ),
        ),
    ),
    Api(
        "hotel.search",
        "Search for hotel rooms in a city.",
        {
            "city": need("string", "Name of the city", *CITIES),
            "nights": need("integer", "Number of nights", 2, 3, 4, 6),
            "max_price": may("number", "Highest price per night in dollars", 90, 120, 200),
            "breakfast": may("boolean", "True if breakfast must be included"),
        },
        (
            ask("I need a hotel in {city} for {nights} nights."),
            ask("Find a room in {city}, {nights} nights, up to {max_price} dollars a night."),
            ask("Where can I stay in {city} for {nights} nights with breakfast?", breakfast=True),
            ask("We'll spend {nights} nights in {city}. What hotels are there?"),
            ask("Somewhere to sleep in {city} tonight, just one night.", nights=1),
            ask("{nights} nights in {city} with breakfast, not above {max_price}.", breakfast=True),
            ask("Show hotels in {city} for a stay of {nights} nights."),
            ask("My budget is {max_price} dollars per night; I stay {nights} nights in {city}."),
        ),
    ),
    Api(
        "reminder.set",
        "Set a reminder.",
        {
            "task": need("string", "What to remind of", "water the plants", "call mom", "buy stamps"),
            "time": need("string", "Time, HH:MM in 24-hour form", *CLOCK),
            "repeat": may(
                "string",
                "How often to repeat, one of 'daily', 'weekly'",
                ("every day", "daily"),
                ("every week", "weekly"),
            ),
        },
        (
            ask("Remind me to {task} at {time}."),
            ask("At {time} I have to {task}, remind me please."),
            ask("I must {task} {repeat} at {time}. Set a reminder."),
            ask("Don't let me forget to {task}. {time} would be a good time."),
            ask("Set a reminder for {time}: {task}."),
            ask("Tell me {repeat} at {time} to {task}."),
            ask("I want a note at {time} to {task}."),
            ask("Could you remind me {repeat} to {task}? Say at {time}."),
        ),
    ),
    Api(
        "taxi.order",
        "Order a taxi.",
        {
            "pickup": need("string", "Address to start from", "12 Oak Street", "Central Station", "5 Hill Road"),
            "dropoff": need("string", "Address to go to", "the airport", "City Hall", "Pier 9"),
            "passengers": may("integer", "Number of passengers", 2, 3, 5),
            "wheelchair": may("boolean", "True if the car must fit a wheelchair"),
        },
        (
            ask("Get me a taxi from {pickup} to {dropoff}."),
            ask("I have to get to {dropoff}, pick me up at {pickup}."),
            ask("We're {passengers} people at {pickup} and need a cab to {dropoff}."),
            ask(
                "A taxi from {pickup} to {dropoff} please, my mother is in a wheelchair.",
                wheelchair=True,
            ),
            ask("Can a cab take {passengers} of us from {pickup} to {dropoff}?"),
            ask("Order a car to {dropoff}. It should come to {pickup}."),
            ask("Taxi! {pickup} to {dropoff}."),
            ask(
                "{passengers} passengers, from {pickup} to {dropoff}, one uses a wheelchair.",
                wheelchair=True,
            ),
        ),
    ),
    Api(
        "movies.recommend",
        "Recommend movies.",
        {
            "genre": need("string", "Genre", "comedy", "horror", "drama", "western"),
            "min_rating": may("number", "Lowest rating from 0 to 10", 6, 7.5, 8),
            "after_year": may("integer", "Only movies released after this year", 1990, 2005, 2015),
        },
        (
            ask("Recommend a {genre} movie."),
            ask("I feel like watching some {genre}, nothing rated below {min_rating}."),
            ask("Which good {genre} movies came out after {after_year}?"),
            ask("What {genre} film should we watch tonight?"),
            ask("Suggest a {genre} with a rating of at least {min_rating}, made after {after_year}."),
            ask("I only like {genre} films newer than {after_year}. Any tips?"),
            ask("Do you know a nice {genre}? It should have {min_rating} or more."),
            ask("Movie night! {genre}, please, from after {after_year}."),
        ),
    ),
    Api(
        "fitness.log_workout",
        "Record a workout.",
        {
            "activity": need("string", "Kind of exercise", "running", "cycling", "swimming"),
            "minutes": need("integer", "Duration in minutes", 25, 30, 45, 60),
            "distance_km": may("number", "Distance in kilometres", 3, 5.5, 8, 12),
            "intensity": may("string", "One of 'low', 'medium', 'high'", "low", "medium", "high"),
        },
        (
            ask("I did {minutes} minutes of {activity}."),
            ask("Log {activity}: {distance_km} km in {minutes} minutes."),
            ask("Save my {activity} session, {minutes} minutes at {intensity} intensity."),
            ask("Today I went {activity} for {minutes} minutes, please note it down."),
            ask("{distance_km} kilometres of {activity} took me {minutes} minutes."),
            ask("Half an hour of {activity} done!", minutes=30),
            ask("Put {minutes} minutes of {activity} into my training log."),
            ask("A {intensity} intensity day: {activity}, {distance_km} km, {minutes} minutes."),
        ),
    ),
    Api(
        "currency.convert",
        "Convert an amount of money into another currency.",
        {
            "amount": need("number", "Amount to convert", 50, 99.5, 200, 1000),
            "source": need("string", "Currency code to convert from", *CURRENCIES[:3]),
            "target": need("string", "Currency code to convert into", *CURRENCIES[3:]),
            "date": may("string", "Date of the exchange rate, YYYY-MM-DD", *DATES),
        },
        (
            ask("How much is {amount} {source} in {target}?"),
            ask("Convert {amount} {source} to {target}."),
            ask("What would {amount} {source} have been in {target} on {date}?"),
            ask("I have {amount} {source} and need {target}. How much do I get?"),
            ask("Change {amount} from {source} to {target} at the rate of {date}."),
            ask("{amount} {source} makes how many {target}?"),
            ask("In {target}, what are {amount} {source} worth?"),
            ask("Use the {date} rate: {amount} {source} into {target}."),
        ),
    ),
    Api(
        "parcel.track",
        "Track a parcel.",
        {
            "tracking_number": need("string", "Number of the parcel", "ZX4481", "PK9027", "TT1350"),
            "carrier": may("string", "Name of the carrier", "DHL", "UPS", "FedEx"),
            "notify": may("boolean", "True to get a message on every change"),
        },
        (
            ask("Where is my parcel {tracking_number}?"),
            ask("Track {tracking_number} with {carrier}."),
            ask("My {carrier} package has the number {tracking_number}. When does it arrive?"),
            ask("Keep me posted about parcel {tracking_number}.", notify=True),
            ask("Has {tracking_number} been delivered yet?"),
            ask("I'm waiting for {tracking_number}, sent by {carrier}. Any news?"),
            ask("Find out what happened to parcel {tracking_number}."),
            ask("Tell me each time {tracking_number} moves; {carrier} has it.", notify=True),
        ),
    ),
    Api(
        "lights.control",
        "Switch the lights of a room.",
        {
            "room": need("string", "Name of the room", *ROOMS),
            "on": need("boolean", "True to switch on, False to switch off"),
            "brightness": may("integer", "Brightness in percent", 20, 40, 60, 75),
            "color": may("string", "Colour of the light", "red", "blue", "warm white"),
        },
        (
            ask("Turn on the lights in the {room}.", on=True),
            ask("Lights off in the {room}, please.", on=False),
            ask("Switch the {room} lights on at {brightness} percent.", on=True),
            ask("It's too bright in the {room}, kill the lights.", on=False),
            ask("Make the {room} {color}: turn the light on.", on=True),
            ask("Switch on {color} light in the {room}, {brightness} percent.", on=True),
            ask("I've left the {room}, you can switch off the lights there.", on=False),
            ask("On with the light in the {room}! {brightness} percent, {color}.", on=True),
        ),
    ),
    Api(
        "news.search",
        "Search for news articles.",
        {
            "topic": need("string", "Topic", "climate", "elections", "space travel", "football"),
            "country": may("string", "Country of the articles", *COUNTRIES),
            "limit": may("integer", "Number of articles", 3, 5, 10),
        },
        (
            ask("What's new about {topic}?"),
            ask("Show me {limit} articles on {topic}."),
            ask("News about {topic} from {country}, please."),
            ask("I want to read {limit} stories about {topic} in {country}."),
            ask("Is there anything about {topic} in the news?"),
            ask("What do papers in {country} write about {topic}?"),
            ask("Get me the latest on {topic}, {limit} articles are enough."),
            ask("Anything happening in {country} when it comes to {topic}?"),
        ),
    ),
    Api(
        "timer.start",
        "Start a timer.",
        {
            "minutes": need("integer", "Minutes until it rings", 3, 8, 12, 25),
            "label": may("string", "Name of the timer", "pasta", "laundry", "tea", "pizza"),
            "silent": may("boolean", "True to vibrate instead of ringing"),
        },
        (
            ask("Set a timer for {minutes} minutes."),
            ask("Start a {minutes} minute timer called {label}."),
            ask("The {label} needs {minutes} minutes, set a timer named {label}."),
            ask("Wake me in {minutes} minutes, but silently.", silent=True),
            ask("Count down {minutes} minutes for me."),
            ask("Quiet timer, {minutes} minutes, name it {label}.", silent=True),
            ask("I need {minutes} minutes on the clock."),
            ask("{minutes} minutes for the {label}, label it {label}."),
        ),
    ),
    Api(
        "library.search_books",
        "Search the catalogue of a library.",
        {
            "author": need("string", "Name of the author", "Jane Austen", "Mark Twain", "Homer"),
            "language": may("string", "Language of the book", "English", "Spanish", "German"),
            "available": may("boolean", "True for books that are not on loan"),
        },
        (
            ask("Which books by {author} do you have?"),
            ask("I'm looking for {author} in {language}."),
            ask("What by {author} can I borrow today?", available=True),
            ask("Search the library for {author}."),
            ask("Do you keep {language} editions of {author}?"),
            ask("Is there any {author} in {language} on the shelf now?", available=True),
            ask("List everything written by {author}."),
            ask("I read only {language}. Do you have {author}, and not on loan?", available=True),
        ),
    ),
    Api(
        "geometry.circle_area",
        "Compute the area of a circle.",
        {
            "radius": need("number", "Radius of the circle", 2, 4.5, 7, 10, 13),
            "unit": may("string", "Unit of length", "cm", "m", "inches"),
            "decimals": may("integer", "Number of decimals in the result", 2, 3, 4),
        },
        (
            ask("What is the area of a circle with radius {radius}?"),
            ask("A circle has a radius of {radius} {unit}. How big is its area?"),
            ask("Compute the area for radius {radius}, rounded to {decimals} decimals."),
            ask("Radius {radius}: what's the area of the circle?"),
            ask("How large is a round table with a radius of {radius} {unit}?"),
            ask("I want {decimals} decimals: the area of a circle whose radius is {radius} {unit}."),
            ask("Work out the area of a circle of radius {radius}."),
            ask("Give the area of a circle to {decimals} decimals; its radius is {radius} {unit}."),
        ),
    ),
    Api(
        "phone.send_message",
        "Send a text message.",
        {
            "contact": need("string", "Name of the contact", *PEOPLE),
            "message": need("string", "Text of the message", "I'm late", "Happy birthday", "On my way"),
            "send_at": may("string", "Time to send it, HH:MM in 24-hour form", *CLOCK),
        },
        (
            ask('Text {contact} "{message}".'),
            ask('Tell {contact} "{message}" by message.'),
            ask('Send {contact} the message "{message}" at {send_at}.'),
            ask('I want to write "{message}" to {contact}.'),
            ask('At {send_at}, let {contact} know: "{message}".'),
            ask('Message for {contact}: "{message}".'),
            ask('Could you text "{message}" to {contact} for me?'),
            ask('Schedule a text to {contact} for {send_at}. It says "{message}".'),
        ),
    ),
    Api(
        "plants.watering_schedule",
        "Work out how often a plant needs water.",
        {
            "plant": need("string", "Name of the plant", "basil", "cactus", "tulip", "fern"),
            "indoor": need("boolean", "True for plants inside, False for plants outside"),
            "pot_size": may("string", "One of 'small', 'medium', 'large'", "small", "large"),
        },
        (
            ask("How often should I water my indoor {plant}?", indoor=True),
            ask("I keep a {plant} outside. When does it need water?", indoor=False),
            ask("There's a {plant} in a {pot_size} pot in my living room. Watering?", indoor=True),
            ask("My {plant} stands in the garden, how often do I water it?", indoor=False),
            ask("Make a watering plan for a {plant} in a {pot_size} pot, indoors.", indoor=True),
            ask("Watering schedule for an outdoor {plant}, the pot is {pot_size}.", indoor=False),
            ask("My {plant} lives on the office desk. How much water does it want?", indoor=True),
            ask("How often do I water a {plant} outdoors in a {pot_size} pot?", indoor=False),
        ),
    ),
    Api(
        "tickets.buy",
        "Buy tickets for an event.",
        {
            "event": need("string", "Name of the event", "Hamlet", "Jazz Night", "City Marathon"),
            "quantity": need("integer", "Number of tickets", 2, 3, 4, 6),
            "section": may("string", "Part of the venue", "balcony", "front row", "stalls"),
            "student": may("boolean", "True for the student price"),
        },
        (
            ask("Buy {quantity} tickets for {event}."),
            ask("I want {quantity} {section} tickets for {event}."),
            ask("{quantity} student tickets for {event}, please.", student=True),
            ask("Get us into {event}, we're {quantity} people."),
            ask("For {event} I need {quantity} seats, section: {section}."),
            ask("One ticket to {event} for me.", quantity=1),
            ask("We'd love to see {event}. {quantity} tickets, please."),
            ask("As students we'd like {quantity} tickets for {event}, {section}.", student=True),
        ),
    ),
)
