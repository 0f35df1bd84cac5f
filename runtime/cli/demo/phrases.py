"""Phrases: what the demo's invented customers say.

Imports nothing. `{part}` and `{time}` are filled in. The sentences differ in length, praise, blame and
punctuation as real ones do; quotes and commas are there on purpose, since they make CSV files hard to cut.
"""

PRODUCTS: dict[str, tuple[float, tuple[str, ...]]] = {
    "Kestrel headphones": (0.62, ("sound", "headband", "noise cancelling", "charging case", "battery")),
    "Marlin kettle": (0.48, ("lid", "spout", "handle", "thermostat", "base")),
    "Juniper desk lamp": (0.35, ("dimmer", "hinge", "shade", "switch", "cable")),
    "Otter rain jacket": (0.30, ("zip", "hood", "lining", "stitching", "fabric")),
    "Basalt frying pan": (0.18, ("coating", "handle", "rim", "base", "lid")),
    "Larch bookshelf": (0.08, ("top shelf", "frame", "finish", "back panel", "manual")),
    "Comet e-reader": (0.02, ("screen", "page button", "backlight", "menu", "battery")),
    "Tern travel mug": (-0.10, ("seal", "lid", "coating", "button", "rim")),
    "Quarry drill": (-0.18, ("chuck", "grip", "motor", "charger", "battery")),
    "Sorrel air fryer": (-0.30, ("basket", "display", "timer", "fan", "drawer")),
    "Pike inkjet printer": (-0.46, ("paper tray", "ink cartridge", "driver", "wireless setup", "scanner")),
    "Vetch robot vacuum": (-0.60, ("brush", "map", "dustbin", "app", "sensor")),
}
"""Each product: how good it is, from -1 to 1, and the parts that people write about."""

TIMES = ("two days", "a week", "ten days", "a month", "three months", "half a year", "a year", "one weekend")

GOOD = (
    "The {part} is excellent, far better than I had hoped.",
    "After {time} the {part} still works perfectly, and I would buy it again.",
    'My sister calls it "the best gift of the year", and she is hard to please!',
    "Setting it up was easy, the {part} is a pleasure to use.",
    "I love the {part}; it feels solid and well made.",
    "Great value: comfortable, quiet, and the {part} is simply superb.",
    "Customer service was friendly and solved my question within {time}.",
    "Honestly impressed by the {part}!!",
    "It arrived early, nicely packed, and the {part} looks beautiful.",
    "Nothing to complain about after {time}; the {part} is reliable and works like a charm :)",
    "The {part} is not bad at all, in fact it is wonderful for the price.",
    "Everyone in the house is happy with it, and I recommend it gladly.",
)

BAD = (
    "The {part} broke after {time}, which is a disappointment.",
    'It is sold as "premium", but the {part} is cheap and flimsy.',
    "I regret this purchase: the {part} failed, and nobody answered my complaint.",
    "The {part} is terrible, I had to send it back.",
    "Awful smell, poor fit, and the {part} is worse than on my old one.",
    "After {time} the {part} was useless and I was furious.",
    "What a waste of money!!! The {part} never worked properly.",
    "The {part} is not good, it rattles and hurts my hand.",
    "I wanted to like it, but the {part} is a constant annoyance.",
    "Support refused a refund, saying the damage to the {part} was my fault; horrible experience.",
    "The {part} feels dangerous, and the warning in the leaflet is a joke.",
    "Sadly the {part} was scratched and dirty when I opened the box :(",
)

PLAIN = (
    "I have used it for {time} now.",
    "The {part} is about as large as my palm.",
    "It comes in a brown box with a {part}, a leaflet, and two spare screws.",
    "I ordered the grey one, the picture shows the blue one.",
    "The {part} is made of plastic and metal.",
    "Delivery took {time}.",
    "You turn the {part} to the left, then to the right, and it clicks.",
    "We keep it in the kitchen, next to the window.",
    'The label on the {part} says "do not wash above 30 degrees".',
    "My neighbour has the model from last year, with another {part}.",
    "This is my second one; the first is at the office.",
    "It weighs a little over a pound, {part} included.",
)
