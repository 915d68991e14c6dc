"""The behaviours behind ``list_functions`` and the sentences that ask for them. Pure data.

A behaviour's first noun and verb phrase are for training; the second ones are held out (one for
validation, one for test). Slots of the phrases: ``{L}`` the list (or two lists), ``{k}`` a
parameter, ``{kth}`` the same as an ordinal. Slots of the code: ``{xs}`` and ``{ys}`` the arguments,
``{k}``, and ``{code}`` where a parameter reads differently in words and in code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["numbers", "words", "pair", "nested"]


@dataclass(frozen=True)
class Behaviour:
    """One thing a function can do, with the phrases that ask for it and two ways to write it."""

    key: str
    kind: Kind
    names: str  # function names, separated by blanks
    nouns: tuple[str, str]  # complete "returns ..."
    verbs: tuple[str, str]  # complete "should ..."
    expr: str  # the answer as one expression
    body: str = ""  # the answer as one would teach it; empty: return the expression
    params: tuple[Any, ...] = (None,)  # values of k
    inputs: tuple[Any, ...] = ()  # own inputs; empty: the pool of the kind
    empty: bool = True  # whether an empty list is a fair test


INPUTS: dict[Kind, tuple[Any, ...]] = {
    "numbers": (
        ([3, 1, 4, 1, 5, 9, 2, 6],),
        ([10, -2, 0, 7, 7],),
        ([5],),
        ([-3, -1, -2],),
        ([2, 2, 3, 2],),
        ([12, 8, 20, 15, 3],),
        ([1, 2, 3, 4, 5, 6, 7],),
        ([4, -4, 9, 0, 11, 6],),
        ([30, 5, 25, 10, 5],),
        ([8, 6, 7, 5, 3, 0, 9],),
        ([-10, 14, 3, 22],),
        ([100, 2, 50],),
    ),
    "words": (
        (["apple", "kiwi", "banana"],),
        (["sun", "moon", "star", "sky"],),
        (["cat"],),
        (["bread", "butter", "salt", "pepper"],),
        (["blue", "red", "green", "black"],),
        (["river", "sea", "lake", "ocean", "pond"],),
        (["table", "chair", "lamp", "bed"],),
        (["maple", "oak", "birch"],),
        (["car", "boat", "train", "plane"],),
        (["book", "pen", "paper", "desk", "bag"],),
    ),
    "pair": (
        ([1, 2, 3], [4, 5, 6]),
        ([0, -1], [7, 2]),
        ([5], [5]),
        ([2, 4, 6, 8], [1, 4, 6, 9]),
        ([10, 20, 30], [30, 10, 5]),
        ([3, 3, 1], [1, 2, 3]),
        ([9, 8, 7, 6], [1, 8, 3, 6]),
        ([-5, 12], [12, -6]),
    ),
    "nested": (
        ([[1, 2], [3, 4]],),
        ([[5], [], [6, 7, 8]],),
        ([[]],),
        ([[0, -1], [2]],),
        ([[10, 20, 30]],),
        ([[4, 4], [4], [1, 9]],),
        ([[7, 3, 2], [8, 1]],),
    ),
}

SEEN: tuple[Behaviour, ...] = (
    Behaviour(
        "sum_all",
        "numbers",
        "sum_list total add_all",
        ("the sum of all the numbers in {L}", "what all the values in {L} add up to"),
        ("add up all the numbers in {L}", "compute the total of the values in {L}"),
        "sum({xs})",
    ),
    Behaviour(
        "maximum",
        "numbers",
        "find_max largest biggest_number",
        ("the largest number in {L}", "the highest value that appears in {L}"),
        ("find the largest number in {L}", "pick out the biggest value of {L}"),
        "max({xs})",
        empty=False,
    ),
    Behaviour(
        "minimum",
        "numbers",
        "find_min smallest lowest_value",
        ("the smallest number in {L}", "the lowest value that appears in {L}"),
        ("find the smallest number in {L}", "pick out the lowest value of {L}"),
        "min({xs})",
        empty=False,
    ),
    Behaviour(
        "length",
        "numbers",
        "count_items list_length how_many",
        ("the number of items in {L}", "how many elements {L} has"),
        ("count the items in {L}", "tell how long {L} is"),
        "len({xs})",
    ),
    Behaviour(
        "reverse",
        "numbers",
        "reverse_list backwards flip",
        ("{L} in reverse order", "a new list with the items of {L} from last to first"),
        ("reverse the order of {L}", "turn {L} around so that the last item comes first"),
        "{xs}[::-1]",
    ),
    Behaviour(
        "sort_up",
        "numbers",
        "sort_list ascending sort_numbers",
        (
            "the numbers of {L} sorted from smallest to largest",
            "a new list with the values of {L} in ascending order",
        ),
        ("sort {L} in ascending order", "put the numbers of {L} in order, smallest first"),
        "sorted({xs})",
    ),
    Behaviour(
        "sort_down",
        "numbers",
        "sort_descending largest_first sort_desc",
        (
            "the numbers of {L} sorted from largest to smallest",
            "a new list with the values of {L} in descending order",
        ),
        ("sort {L} in descending order", "arrange the numbers of {L} with the biggest first"),
        "sorted({xs}, reverse=True)",
    ),
    Behaviour(
        "sum_even",
        "numbers",
        "sum_even add_evens even_total",
        (
            "the sum of the even numbers in {L}",
            "the total you get from adding only the even values of {L}",
        ),
        ("add up the even numbers in {L}", "sum the even values of {L} and ignore the odd ones"),
        "sum(n for n in {xs} if n % 2 == 0)",
        "total = 0\nfor n in {xs}:\n    if n % 2 == 0:\n        total += n\nreturn total",
    ),
    Behaviour(
        "sum_odd",
        "numbers",
        "sum_odd add_odds odd_total",
        (
            "the sum of the odd numbers in {L}",
            "the total you get from adding only the odd values of {L}",
        ),
        ("add up the odd numbers in {L}", "sum the odd values of {L} and skip the even ones"),
        "sum(n for n in {xs} if n % 2 != 0)",
        "total = 0\nfor n in {xs}:\n    if n % 2 != 0:\n        total += n\nreturn total",
    ),
    Behaviour(
        "keep_even",
        "numbers",
        "get_evens keep_even filter_even",
        ("a list of the even numbers in {L}", "only those values of {L} that are even"),
        ("keep only the even numbers of {L}", "filter {L} so that just the even values remain"),
        "[n for n in {xs} if n % 2 == 0]",
    ),
    Behaviour(
        "keep_odd",
        "numbers",
        "get_odds keep_odd odd_numbers",
        ("a list of the odd numbers in {L}", "only those values of {L} that are odd"),
        ("keep only the odd numbers of {L}", "throw out the even values of {L}"),
        "[n for n in {xs} if n % 2 != 0]",
    ),
    Behaviour(
        "count_even",
        "numbers",
        "count_even num_evens how_many_even",
        ("the number of even values in {L}", "how many of the numbers in {L} are even"),
        ("count the even numbers in {L}", "find out how many even values {L} contains"),
        "sum(1 for n in {xs} if n % 2 == 0)",
        "count = 0\nfor n in {xs}:\n    if n % 2 == 0:\n        count += 1\nreturn count",
    ),
    Behaviour(
        "keep_positive",
        "numbers",
        "positives keep_positive only_positive",
        (
            "a list of the numbers in {L} that are greater than zero",
            "the positive values of {L}, in their original order",
        ),
        ("keep only the positive numbers of {L}", "drop every zero and negative value from {L}"),
        "[n for n in {xs} if n > 0]",
    ),
    Behaviour(
        "count_negative",
        "numbers",
        "count_negative num_negative count_below_zero",
        ("the number of negative values in {L}", "how many numbers in {L} are below zero"),
        ("count the negative numbers in {L}", "find out how many values of {L} are less than zero"),
        "sum(1 for n in {xs} if n < 0)",
        "count = 0\nfor n in {xs}:\n    if n < 0:\n        count += 1\nreturn count",
    ),
    Behaviour(
        "squares",
        "numbers",
        "square_all squares squared",
        (
            "a list with the square of each number in {L}",
            "the squares of the values in {L}, in the same order",
        ),
        ("square every number in {L}", "replace each value of {L} by its square"),
        "[n * n for n in {xs}]",
    ),
    Behaviour(
        "times_k",
        "numbers",
        "multiply_each scale times",
        (
            "a list with every number in {L} multiplied by {k}",
            "the values of {L}, each one {k} times as large",
        ),
        ("multiply each number in {L} by {k}", "scale all the values of {L} by a factor of {k}"),
        "[n * {k} for n in {xs}]",
        params=(2, 3, 10),
    ),
    Behaviour(
        "add_k",
        "numbers",
        "add_to_each increase_all shift",
        (
            "a list where {k} has been added to every number in {L}",
            "the values of {L}, each one increased by {k}",
        ),
        ("add {k} to each number in {L}", "increase all the values of {L} by {k}"),
        "[n + {k} for n in {xs}]",
        params=(1, 5, 7),
    ),
    Behaviour(
        "keep_above_k",
        "numbers",
        "filter_greater keep_large above",
        (
            "a list of the numbers in {L} that are greater than {k}",
            "the values of {L} that are larger than {k}, in order",
        ),
        ("keep only the numbers of {L} above {k}", "drop the values of {L} that do not exceed {k}"),
        "[n for n in {xs} if n > {k}]",
        params=(3, 5, 8),
    ),
    Behaviour(
        "count_above_k",
        "numbers",
        "count_greater num_above count_over",
        ("the number of items in {L} greater than {k}", "how many values in {L} exceed {k}"),
        ("count the items of {L} that are above {k}", "find how many numbers in {L} go over {k}"),
        "sum(1 for n in {xs} if n > {k})",
        "count = 0\nfor n in {xs}:\n    if n > {k}:\n        count += 1\nreturn count",
        params=(2, 4, 6),
    ),
    Behaviour(
        "sum_below_k",
        "numbers",
        "sum_below sum_small add_smaller",
        (
            "the sum of the numbers in {L} that are less than {k}",
            "the total of those values in {L} that stay under {k}",
        ),
        ("add up the numbers in {L} below {k}", "sum just the values of {L} smaller than {k}"),
        "sum(n for n in {xs} if n < {k})",
        "total = 0\nfor n in {xs}:\n    if n < {k}:\n        total += n\nreturn total",
        params=(4, 7, 10),
    ),
    Behaviour(
        "first_k",
        "numbers",
        "first_items take head",
        ("the first {k} items of {L}", "a list with the {k} elements {L} starts with"),
        ("take the first {k} elements of {L}", "cut {L} off after {k} items"),
        "{xs}[:{k}]",
        params=(2, 3, 4),
    ),
    Behaviour(
        "last_k",
        "numbers",
        "last_items tail final_items",
        ("the last {k} items of {L}", "a list with the {k} elements at the end of {L}"),
        ("take the last {k} elements of {L}", "keep just the final {k} items of {L}"),
        "{xs}[-{k}:]",
        params=(2, 3, 4),
    ),
    Behaviour(
        "every_kth",
        "numbers",
        "every_nth take_every step_through",
        (
            "every {kth} element of {L}, beginning with the first",
            "the items of {L} at steps of {k}, counted from the first one",
        ),
        (
            "take every {kth} element of {L}, starting from index 0",
            "walk through {L} in steps of {k} from the start and collect the items",
        ),
        "{xs}[::{k}]",
        params=(2, 3),
    ),
    Behaviour(
        "rotate_left",
        "numbers",
        "rotate_left rotate shift_left",
        (
            "{L} rotated to the left by {k}, so that the first {k} items end up at the back",
            "a list in which the first {k} elements of {L} have moved to the end",
        ),
        ("rotate {L} left by {k} places", "move the first {k} items of {L} to the end"),
        "{xs}[{k}:] + {xs}[:{k}]",
        params=(2, 3),
    ),
    Behaviour(
        "dedupe",
        "numbers",
        "remove_duplicates unique dedupe",
        (
            "the items of {L} without duplicates, in order of first appearance",
            "each distinct value of {L} once, keeping the original order",
        ),
        (
            "remove the duplicates from {L} while keeping the order",
            "drop repeated values from {L} and leave the first one of each in place",
        ),
        "list(dict.fromkeys({xs}))",
        "result = []\nfor n in {xs}:\n    if n not in result:\n        result.append(n)\nreturn result",
    ),
    Behaviour(
        "count_distinct",
        "numbers",
        "count_unique num_distinct distinct_count",
        ("the number of distinct values in {L}", "how many different numbers {L} contains"),
        ("count the different values in {L}", "find out how many unique numbers are in {L}"),
        "len(set({xs}))",
    ),
    Behaviour(
        "running_sum",
        "numbers",
        "running_sum cumulative running_total",
        (
            "a list of the running totals of {L}",
            "the cumulative sums of {L}, one for each position",
        ),
        (
            "compute the running sum of {L} at each position",
            "replace each number of {L} by the sum of all the numbers up to it",
        ),
        "[sum({xs}[: i + 1]) for i in range(len({xs}))]",
        "result = []\ntotal = 0\nfor n in {xs}:\n    total += n\n    result.append(total)\nreturn result",
    ),
    Behaviour(
        "running_max",
        "numbers",
        "running_max max_so_far highest_so_far",
        (
            "a list with the largest value seen so far at each position of {L}",
            "the running maximum of {L}",
        ),
        (
            "compute the running maximum of {L}",
            "replace each number of {L} by the biggest one up to that point",
        ),
        "[max({xs}[: i + 1]) for i in range(len({xs}))]",
        "result = []\nfor n in {xs}:\n    if result and result[-1] > n:\n"
        "        result.append(result[-1])\n    else:\n        result.append(n)\nreturn result",
    ),
    Behaviour(
        "differences",
        "numbers",
        "differences deltas pairwise_diff",
        (
            "a list of the differences between each number in {L} and the one before it",
            "how much {L} changes from each value to the next, as a list",
        ),
        (
            "subtract from each number in {L} the one just before it and collect the results",
            "list the step from each value of {L} to the following one",
        ),
        "[{xs}[i + 1] - {xs}[i] for i in range(len({xs}) - 1)]",
        "result = []\nfor i in range(1, len({xs})):\n    result.append({xs}[i] - {xs}[i - 1])\nreturn result",
    ),
    Behaviour(
        "mean",
        "numbers",
        "average mean average_value",
        (
            "the average of the numbers in {L}, or 0 if there are none",
            "the mean value of {L} (0 for an empty list)",
        ),
        (
            "compute the average of {L}, giving 0 when it is empty",
            "find the mean of the values in {L} and use 0 when there is nothing to average",
        ),
        "sum({xs}) / len({xs}) if {xs} else 0",
        "if not {xs}:\n    return 0\nreturn sum({xs}) / len({xs})",
        inputs=(
            ([2, 4, 6],),
            ([5],),
            ([1, 2],),
            ([-3, 3, 9],),
            ([10, 20, 30, 40],),
            ([7, 7, 7, 7],),
            ([0, 1, 0, 2],),
        ),
    ),
    Behaviour(
        "spread",
        "numbers",
        "value_range spread max_minus_min",
        (
            "the difference between the largest and the smallest number in {L}",
            "how far apart the highest and the lowest value of {L} are",
        ),
        (
            "subtract the smallest number in {L} from the largest",
            "measure the gap between the maximum and the minimum of {L}",
        ),
        "max({xs}) - min({xs})",
        empty=False,
    ),
    Behaviour(
        "contains_k",
        "numbers",
        "contains has_value includes",
        ("True if {k} is in {L}, and False otherwise", "whether the number {k} occurs in {L}"),
        ("check whether {L} contains {k}", "tell if the value {k} appears anywhere in {L}"),
        "{k} in {xs}",
        params=(5, 7, 3),
    ),
    Behaviour(
        "index_max",
        "numbers",
        "index_of_max argmax position_of_largest",
        (
            "the index of the largest number in {L} (the first one if there are several)",
            "the position, counted from 0, where the maximum of {L} first appears",
        ),
        (
            "find the index at which the largest number in {L} first stands",
            "locate the first maximum of {L} and give its index",
        ),
        "{xs}.index(max({xs}))",
        "best = 0\nfor i in range(len({xs})):\n    if {xs}[i] > {xs}[best]:\n        best = i\nreturn best",
        empty=False,
    ),
    Behaviour(
        "count_k",
        "numbers",
        "count_value occurrences times_seen",
        ("how many times {k} occurs in {L}", "the number of items in {L} that are equal to {k}"),
        ("count how often {k} appears in {L}", "find the number of times {L} holds the value {k}"),
        "{xs}.count({k})",
        params=(2, 5, 7),
    ),
    Behaviour(
        "remove_k",
        "numbers",
        "remove_value without drop_all",
        ("{L} with every {k} removed", "the items of {L} that are not equal to {k}"),
        ("remove all occurrences of {k} from {L}", "get rid of every {k} in {L}"),
        "[n for n in {xs} if n != {k}]",
        params=(2, 5, 7),
    ),
    Behaviour(
        "negatives_to_zero",
        "numbers",
        "clip_negatives no_negatives floor_at_zero",
        (
            "a list in which the negative numbers of {L} are replaced by 0",
            "the values of {L} with 0 standing in for anything below zero",
        ),
        (
            "replace every negative number in {L} with 0",
            "set the values of {L} that are below zero to 0 and keep the others",
        ),
        "[max(n, 0) for n in {xs}]",
        "result = []\nfor n in {xs}:\n    if n < 0:\n        result.append(0)\n    else:\n"
        "        result.append(n)\nreturn result",
    ),
    Behaviour(
        "divisible_by_k",
        "numbers",
        "divisible multiples_of keep_multiples",
        (
            "a list of the numbers in {L} that are divisible by {k}",
            "those values of {L} that are multiples of {k}",
        ),
        (
            "keep the numbers of {L} that can be divided by {k}",
            "pick the multiples of {k} from {L}",
        ),
        "[n for n in {xs} if n % {k} == 0]",
        params=(3, 4, 5),
    ),
    Behaviour(
        "sum_squares",
        "numbers",
        "sum_of_squares square_sum total_squares",
        (
            "the sum of the squares of the numbers in {L}",
            "what you get by squaring each value of {L} and adding the results",
        ),
        (
            "square the numbers in {L} and add them up",
            "compute the sum of squares of the values in {L}",
        ),
        "sum(n * n for n in {xs})",
        "total = 0\nfor n in {xs}:\n    total += n ** 2\nreturn total",
    ),
    Behaviour(
        "all_positive",
        "numbers",
        "all_positive only_positives every_positive",
        (
            "True if every number in {L} is greater than zero, and False otherwise",
            "whether all the values in {L} are positive",
        ),
        (
            "check whether all the numbers in {L} are positive",
            "tell if {L} is free of zeros and negative values",
        ),
        "all(n > 0 for n in {xs})",
        "for n in {xs}:\n    if n <= 0:\n        return False\nreturn True",
    ),
    Behaviour(
        "any_negative",
        "numbers",
        "has_negative any_negative contains_negative",
        (
            "True if {L} contains a negative number, and False if not",
            "whether at least one value in {L} is below zero",
        ),
        (
            "check whether any number in {L} is negative",
            "tell if there is a value less than zero in {L}",
        ),
        "any(n < 0 for n in {xs})",
        "for n in {xs}:\n    if n < 0:\n        return True\nreturn False",
    ),
    Behaviour(
        "palindrome",
        "numbers",
        "is_palindrome same_backwards reads_same",
        (
            "True if {L} is the same forwards and backwards, and False otherwise",
            "whether {L} is a palindrome",
        ),
        ("check whether {L} is a palindrome", "tell if {L} stays the same when it is reversed"),
        "{xs} == {xs}[::-1]",
        inputs=(
            ([1, 2, 1],),
            ([1, 2, 3],),
            ([7],),
            ([4, 4],),
            ([5, 6],),
            ([1, 0, 0, 1],),
            ([2, 3, 3, 1],),
        ),
    ),
    Behaviour(
        "elementwise_sum",
        "pair",
        "add_lists sum_pairs elementwise_sum",
        (
            "a list of the sums of the items of {L} at the same position",
            "the position by position sums of {L}, which have the same length",
        ),
        (
            "add {L} element by element",
            "combine {L} into one list by adding the numbers that stand at the same index",
        ),
        "[x + y for x, y in zip({xs}, {ys})]",
        "result = []\nfor i in range(len({xs})):\n    result.append({xs}[i] + {ys}[i])\nreturn result",
    ),
    Behaviour(
        "interleave",
        "pair",
        "interleave alternate weave",
        (
            "one list that takes items from {L} in turn, starting with the first list",
            "the items of {L}, which are equally long, in alternating order",
        ),
        (
            "interleave {L}, taking one item from each in turn",
            "weave {L} together so that their items alternate",
        ),
        "[n for pair in zip({xs}, {ys}) for n in pair]",
        "result = []\nfor x, y in zip({xs}, {ys}):\n    result.append(x)\n    result.append(y)\nreturn result",
    ),
    Behaviour(
        "common",
        "pair",
        "common_items in_both shared",
        (
            "the items of `{xs}` that also occur in `{ys}`",
            "a list of those elements of `{xs}` which can be found in `{ys}` too",
        ),
        (
            "keep the items of `{xs}` that are also in `{ys}`",
            "go through `{xs}` and collect what `{ys}` contains as well",
        ),
        "[n for n in {xs} if n in {ys}]",
    ),
    Behaviour(
        "word_lengths",
        "words",
        "word_lengths get_lengths lengths",
        (
            "a list with the length of each word in {L}",
            "how many letters each of the words in {L} has, as a list",
        ),
        ("get the length of every word in {L}", "replace each word of {L} by its length"),
        "[len(w) for w in {xs}]",
    ),
    Behaviour(
        "longest_word",
        "words",
        "longest_word find_longest longest",
        (
            "the longest word in {L} (the first one if there is a tie)",
            "the word of {L} that has the most letters, or the first such word",
        ),
        (
            "find the longest word in {L}, taking the first one in a tie",
            "pick the word with the most letters from {L}, the earliest one if several share it",
        ),
        "max({xs}, key=len)",
        "longest = {xs}[0]\nfor w in {xs}:\n    if len(w) > len(longest):\n        longest = w\nreturn longest",
        empty=False,
    ),
    Behaviour(
        "upper",
        "words",
        "to_upper uppercase_all shout",
        ("a list of the words in {L} in upper case", "all words of {L} written in capital letters"),
        ("convert every word in {L} to upper case", "put the words of {L} into capitals"),
        "[w.upper() for w in {xs}]",
    ),
    Behaviour(
        "join",
        "words",
        "join_words combine join_all",
        (
            "one string with the words of {L} joined by {k}",
            "the words of {L} put together as a single string, with {k} between them",
        ),
        (
            "join the words in {L} into one string with {k} between them",
            "glue the words of {L} together using {k} as the separator",
        ),
        "{code}.join({xs})",
        params=(("a hyphen", "'-'"), ("a comma", "','"), ("a space", "' '")),
    ),
    Behaviour(
        "starts_with",
        "words",
        "starting_with filter_by_letter words_with_letter",
        (
            "a list of the words in {L} that start with the letter '{k}'",
            "those words of {L} whose first letter is '{k}'",
        ),
        (
            "keep the words of {L} that begin with '{k}'",
            "pick out the words in {L} starting with the letter '{k}'",
        ),
        "[w for w in {xs} if w.startswith('{k}')]",
        params=("b", "p", "s"),
    ),
    Behaviour(
        "longer_than",
        "words",
        "long_words longer_than filter_long",
        (
            "a list of the words in {L} with more than {k} letters",
            "those words of {L} that are longer than {k} characters",
        ),
        (
            "keep only the words of {L} that have more than {k} letters",
            "leave out the words of {L} with {k} letters or fewer",
        ),
        "[w for w in {xs} if len(w) > {k}]",
        params=(3, 4),
    ),
    Behaviour(
        "reverse_words",
        "words",
        "reverse_each flip_words reversed_words",
        (
            "a list with every word in {L} spelled backwards",
            "the words of {L}, in the same order but with the letters of each one reversed",
        ),
        ("reverse the letters of each word in {L}", "spell every word of {L} from back to front"),
        "[w[::-1] for w in {xs}]",
    ),
    Behaviour(
        "total_chars",
        "words",
        "total_length count_letters total_chars",
        (
            "the total number of characters in all the words of {L}",
            "how many letters the words in {L} have altogether",
        ),
        ("add up the lengths of the words in {L}", "count all the letters in the words of {L}"),
        "sum(len(w) for w in {xs})",
        "total = 0\nfor w in {xs}:\n    total += len(w)\nreturn total",
    ),
    Behaviour(
        "chunk",
        "numbers",
        "chunk split_into_groups batches",
        (
            "{L} split into consecutive lists of {k} items (the last one may be shorter)",
            "a list of lists, each with the next {k} items of {L} or whatever is left",
        ),
        (
            "split {L} into groups of {k}, with a shorter last group if need be",
            "cut {L} into pieces of {k} items each, leaving the rest in a final shorter piece",
        ),
        "[{xs}[i : i + {k}] for i in range(0, len({xs}), {k})]",
        "result = []\nfor i in range(0, len({xs}), {k}):\n    result.append({xs}[i : i + {k}])\nreturn result",
        params=(2, 3),
    ),
    Behaviour(
        "flatten",
        "nested",
        "flatten flatten_list merge_inner",
        (
            "one flat list with all the items of the inner lists of {L}",
            "every number in the inner lists of {L}, in order, as a single list",
        ),
        ("flatten {L} into a single list", "put the items of all the inner lists of {L} in a row"),
        "[n for inner in {xs} for n in inner]",
        "result = []\nfor inner in {xs}:\n    result.extend(inner)\nreturn result",
    ),
    Behaviour(
        "inner_sums",
        "nested",
        "row_sums inner_sums sum_each",
        (
            "a list with the sum of each inner list of {L}",
            "the total of every inner list in {L}, in order",
        ),
        ("add up each inner list of {L}", "replace every inner list of {L} by its sum"),
        "[sum(inner) for inner in {xs}]",
    ),
    Behaviour(
        "zeros_last",
        "numbers",
        "zeros_to_end move_zeros push_zeros",
        (
            "{L} with all zeros moved to the end and the other items in order",
            "the nonzero values of {L} in their order, followed by all its zeros",
        ),
        (
            "move every 0 in {L} to the end without changing the order of the rest",
            "push the zeros of {L} to the back while the other numbers stay in order",
        ),
        "[n for n in {xs} if n != 0] + [n for n in {xs} if n == 0]",
        "others = [n for n in {xs} if n != 0]\nzeros = [0] * {xs}.count(0)\nreturn others + zeros",
        inputs=(
            ([0, 1, 0, 3],),
            ([4, 5],),
            ([0],),
            ([0, 0, 7],),
            ([6, 0, -2, 0, 8],),
            ([9, 0, 9],),
        ),
    ),
    Behaviour(
        "repeat_k",
        "numbers",
        "repeat_each duplicate_items repeat_items",
        (
            "a list in which every item of {L} is repeated {k} times in a row",
            "the items of {L}, each one {k} times before the next",
        ),
        (
            "repeat each item of {L} {k} times in a row",
            "build a list from {L} where every element stands {k} times one after another",
        ),
        "[n for n in {xs} for _ in range({k})]",
        "result = []\nfor n in {xs}:\n    result.extend([n] * {k})\nreturn result",
        params=(2, 3),
    ),
    Behaviour(
        "indices_of_k",
        "numbers",
        "find_positions indices_of where",
        (
            "a list of the indexes at which {k} occurs in {L}",
            "all positions of the value {k} in {L}, counted from 0",
        ),
        ("find every index where {L} has the value {k}", "list the positions of {k} in {L}"),
        "[i for i, n in enumerate({xs}) if n == {k}]",
        "result = []\nfor i, n in enumerate({xs}):\n    if n == {k}:\n        result.append(i)\nreturn result",
        params=(2, 5, 7),
    ),
    Behaviour(
        "count_rises",
        "numbers",
        "count_increases num_rises times_increased",
        (
            "how many numbers in {L} are larger than the number just before them",
            "the number of times {L} goes up from one value to the next",
        ),
        (
            "count the numbers in {L} that are bigger than the one before",
            "find out how often a value in {L} is followed by a larger one",
        ),
        "sum(1 for i in range(1, len({xs})) if {xs}[i] > {xs}[i - 1])",
        "count = 0\nfor i in range(1, len({xs})):\n    if {xs}[i] > {xs}[i - 1]:\n        count += 1\nreturn count",
    ),
    Behaviour(
        "drop_ends",
        "numbers",
        "drop_ends inner_items trim",
        (
            "{L} without its first and last item",
            "everything in {L} except the element at each end",
        ),
        ("remove the first and the last item of {L}", "cut one element off both ends of {L}"),
        "{xs}[1:-1]",
    ),
    Behaviour(
        "to_strings",
        "numbers",
        "to_strings as_text stringify",
        (
            "a list with each number in {L} turned into a string",
            "the values of {L} as strings, in the same order",
        ),
        ("convert every number in {L} to a string", "turn the values of {L} into text one by one"),
        "[str(n) for n in {xs}]",
    ),
)

HELD_OUT_TEST: tuple[Behaviour, ...] = (
    Behaviour(
        "rotate_right",
        "numbers",
        "rotate_right shift_right turn_right",
        (
            "{L} rotated to the right by one, so that the last item comes first",
            "a list in which the last element of {L} has moved to the front",
        ),
        ("rotate {L} right by one place", "move the last item of {L} to the front"),
        "{xs}[-1:] + {xs}[:-1]",
    ),
    Behaviour(
        "count_odd",
        "numbers",
        "count_odd num_odds how_many_odd",
        ("the number of odd values in {L}", "how many of the numbers in {L} are odd"),
        ("count the odd numbers in {L}", "find out how many odd values {L} contains"),
        "sum(1 for n in {xs} if n % 2 != 0)",
        "count = 0\nfor n in {xs}:\n    if n % 2 != 0:\n        count += 1\nreturn count",
    ),
    Behaviour(
        "absolute",
        "numbers",
        "absolute_values abs_all drop_signs",
        (
            "a list with the absolute value of each number in {L}",
            "the values of {L} without their minus signs",
        ),
        (
            "take the absolute value of every number in {L}",
            "make all the numbers in {L} nonnegative by dropping the minus signs",
        ),
        "[abs(n) for n in {xs}]",
    ),
    Behaviour(
        "drop_first_k",
        "numbers",
        "skip_first drop_first after",
        ("{L} without its first {k} items", "whatever is left of {L} after the first {k} elements"),
        ("skip the first {k} items of {L}", "cut {k} elements off the beginning of {L}"),
        "{xs}[{k}:]",
        params=(2, 3, 4),
    ),
    Behaviour(
        "difference",
        "pair",
        "only_in_first subtract_lists not_in_second",
        (
            "the items of `{xs}` that are not in `{ys}`",
            "a list of those elements of `{xs}` which do not occur in `{ys}`",
        ),
        (
            "remove from `{xs}` everything that is also in `{ys}`",
            "collect the items of `{xs}` that `{ys}` does not contain",
        ),
        "[n for n in {xs} if n not in {ys}]",
    ),
    Behaviour(
        "first_letters",
        "words",
        "first_letters initials get_initials",
        (
            "a list with the first letter of each word in {L}",
            "the letter that each of the words in {L} starts with, as a list",
        ),
        ("take the first letter of every word in {L}", "replace each word of {L} by its initial"),
        "[w[0] for w in {xs}]",
    ),
    Behaviour(
        "second_largest",
        "numbers",
        "second_largest runner_up second_highest",
        (
            "the second largest of the different numbers in {L}",
            "the value in {L} that only the maximum exceeds",
        ),
        (
            "find the second largest distinct number in {L}",
            "pick the biggest number in {L} that is smaller than the maximum",
        ),
        "sorted(set({xs}))[-2]",
        inputs=(
            ([3, 1, 4, 1, 5],),
            ([7, 7, 2],),
            ([10, -2],),
            ([1, 2, 3, 3],),
            ([20, 15, 20, 8],),
            ([-5, -1, -3],),
        ),
        empty=False,
    ),
    Behaviour(
        "elementwise_max",
        "pair",
        "larger_of_each elementwise_max best_of_both",
        (
            "a list of the larger of the two items of {L} at each position",
            "the position by position maximum of {L}, which are equally long",
        ),
        (
            "compare {L} index by index and collect the larger item each time",
            "build a list that has the bigger of the two numbers of {L} at every position",
        ),
        "[max(x, y) for x, y in zip({xs}, {ys})]",
        "result = []\nfor x, y in zip({xs}, {ys}):\n    result.append(max(x, y))\nreturn result",
    ),
)

HELD_OUT_VALIDATION: tuple[Behaviour, ...] = (
    Behaviour(
        "index_min",
        "numbers",
        "index_of_min argmin position_of_smallest",
        (
            "the index of the smallest number in {L} (the first one if there are several)",
            "the position, counted from 0, where the minimum of {L} first appears",
        ),
        (
            "find the index at which the smallest number in {L} first stands",
            "locate the first minimum of {L} and give its index",
        ),
        "{xs}.index(min({xs}))",
        "best = 0\nfor i in range(len({xs})):\n    if {xs}[i] < {xs}[best]:\n        best = i\nreturn best",
        empty=False,
    ),
    Behaviour(
        "negate",
        "numbers",
        "negate flip_signs opposite",
        (
            "a list with the sign of each number in {L} changed",
            "the values of {L} with plus and minus exchanged",
        ),
        ("negate every number in {L}", "change the sign of all the values in {L}"),
        "[-n for n in {xs}]",
    ),
    Behaviour(
        "is_sorted",
        "numbers",
        "is_sorted in_order is_ascending",
        (
            "True if {L} is sorted in ascending order, and False otherwise",
            "whether no number in {L} is smaller than the one before it",
        ),
        (
            "check whether {L} is sorted from smallest to largest",
            "tell if the numbers of {L} never go down",
        ),
        "{xs} == sorted({xs})",
        "for i in range(1, len({xs})):\n    if {xs}[i] < {xs}[i - 1]:\n        return False\nreturn True",
    ),
    Behaviour(
        "count_below_k",
        "numbers",
        "count_smaller num_below count_under",
        ("the number of items in {L} less than {k}", "how many values in {L} are below {k}"),
        ("count the items of {L} that are under {k}", "find how many numbers in {L} are below {k}"),
        "sum(1 for n in {xs} if n < {k})",
        "count = 0\nfor n in {xs}:\n    if n < {k}:\n        count += 1\nreturn count",
        params=(3, 5, 8),
    ),
    Behaviour(
        "dot",
        "pair",
        "dot_product dot sum_of_products",
        (
            "the dot product of {L}",
            "the sum of the products of the items of {L} at the same position",
        ),
        (
            "multiply {L} position by position and add up the products",
            "compute the dot product of {L}",
        ),
        "sum(x * y for x, y in zip({xs}, {ys}))",
        "total = 0\nfor x, y in zip({xs}, {ys}):\n    total += x * y\nreturn total",
    ),
    Behaviour(
        "capitalise",
        "words",
        "capitalize_words title_case capitalize_all",
        (
            "a list of the words in {L} with the first letter in upper case",
            "the words of {L}, each one starting with a capital letter",
        ),
        ("capitalize every word in {L}", "give each word of {L} a capital first letter"),
        "[w.capitalize() for w in {xs}]",
    ),
    Behaviour(
        "inner_lengths",
        "nested",
        "row_lengths inner_lengths sizes",
        (
            "a list with the length of each inner list of {L}",
            "how many items every inner list of {L} has, in order",
        ),
        ("get the length of each inner list of {L}", "replace every inner list of {L} by its size"),
        "[len(inner) for inner in {xs}]",
    ),
    Behaviour(
        "neighbour_sums",
        "numbers",
        "neighbour_sums adjacent_sums pair_sums",
        (
            "a list of the sums of each two neighbouring numbers in {L}",
            "what each number in {L} and the one after it add up to, as a list",
        ),
        (
            "add each number in {L} to the one that follows it and collect the sums",
            "list the sums of all adjacent pairs in {L}",
        ),
        "[{xs}[i] + {xs}[i + 1] for i in range(len({xs}) - 1)]",
        "result = []\nfor i in range(len({xs}) - 1):\n    result.append({xs}[i] + {xs}[i + 1])\nreturn result",
    ),
)
