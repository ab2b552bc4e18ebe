"""The words, names and places that the grammar fills its sentences with."""

from __future__ import annotations

from random import Random


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


# Always read letter by letter.
WORDS = words_of(
    """
    acid acorn actor adult agent alarm album alien amber anchor angel angle ankle apple april
    apron arch arena arm armor army arrow artist atom attic aunt author avenue award axe baby back
    bacon badge bag baker ball balloon bamboo banana band bank barn baron barrel basil basin
    basket bat bath beach beacon bead beam bean bear beard beast beauty bed bee beef beetle bell
    belt bench berry bicycle bike bird biscuit bitter blade blanket blaze block bloom board boat
    body bold bolt bone bonus boot border bottle boulder bow bowl box brain branch brave bread
    breeze brick bride bridge bright broad bronze brook broom brother brush bubble bucket budget
    buffalo bug build bull bundle burger bus bush butter button cabin cabinet cable cactus cage
    cake camel camera camp canal candle candy cannon canoe canvas canyon cap captain car caramel
    carbon card cargo carpet carrot cart cartoon castle cat cattle cave cedar ceiling cello cement
    center cereal chain chair chalk chance chapter charm chart cheek cheese cherry chest chicken
    chief child chimney choir church circle circus claw clay clean clerk clever cliff climb clock
    closet cloth cloud clover clown club coach coal coast cobra cocoa coconut coffee coin collar
    comet comic compass concert cookie copper coral corn corner cotton couch cougar council county
    courage cousin cover cow crab cradle crane crater crayon cream creek cricket crisp crop cross
    crow crowd crown cruise crumb crystal cube cup curry curtain curve cushion cycle daisy damp
    dance danger dark dawn deal dear deck deer delta denim desert desk detail device dew diamond
    diary dinner dirt dish dive doctor doll dollar dolphin donkey door dough dove dozen dragon
    drama dress drift drill drink drive drum duck duke dune dust duty eagle ear early earth easel
    east easy echo edge editor eel egg elbow elder elegant elk elm ember emerald empire empty
    energy enjoy entry envy epic equal escape event exit fabric face factory fairy falcon fall
    family famous fancy farm farmer fashion father feast feather fence fern ferry festival fever
    fiber fiction field fifty fig film finger fire fish flag flame flash flavor fleet flight flock
    flood floor flour flower fluid flute fly foam focus fog folk food foot forest fork formal fort
    forum fossil fountain fox frame freedom fresh friend frog frost fruit fudge fuel funny fur
    galaxy gallery garage garden garlic gas gate gather gem general genius gentle ghost giant gift
    ginger giraffe glacier glad glass globe glove glue goat gold golf goose gorilla grace grain
    grand grape graph gravel great grid grill grin grip grove guard guest guide guitar gulf gum
    guppy habit hair half hall hammer hamster hand handle harbor hard harp harvest hat hawk hazel
    head heart heat heaven hedge heel height helmet herb herd hero heron hill hint hippo hobby
    hockey hollow holly home honest honey hood hook horizon horn horse hospital hour house humor
    hundred hunter hurdle hut ice icon idea igloo image inch index infant ink inn insect island
    ivory ivy jacket jaguar jam jar jaw jazz jeans jelly jewel jigsaw job join journal journey joy
    judge juggle juice july jump june jungle junior jury kayak kennel kernel kettle kingdom kiss
    kitchen kite kitten kiwi knee knife knight knot koala label ladder lady lake lamb lamp lantern
    laptop laser laundry lava lawn lawyer leader leaf leather lecture legend lemon lens leopard
    lesson level license lid light lily lime limit linen lion lip liquid lizard llama lobster
    local lock lodge logic lotus loud lucky lunch lung luxury lyric magic magnet maid mail major
    mammal mango manner mansion maple marble march margin marine mask master match matter meadow
    meal medal melody melon member memory menu merchant mercy metal meteor meter middle milk mill
    mimic mind mineral minor mint minute mirror mist mitten mixture modern moment monkey monster
    month moose mosaic moss motel moth motor mountain mouse mouth movie mud muffin mule muscle
    museum mustard mystery myth napkin narrow nation nature navy neck needle nephew nerve nest
    network nickel noble noise noodle north nose notebook nothing novel nurse nut oak oasis oat
    oboe october octopus office oil olive omega onion opal opera orbit orchard orchid order organ
    origin ostrich otter outfit oval oven owl owner oxygen oyster paddle page paint pajamas palace
    palm pan panda panel panther paper parade parcel parent park parrot party pasta pastry patch
    patient pattern pause peach peacock peak peanut pear pearl pebble pelican pen pencil penguin
    pepper perfume phone photo piano pickle picnic picture pie pigeon pillow pilot pine pioneer
    pipe pirate pistol pitcher pizza planet plank plant plastic plate plaza plum pocket poet point
    polar police polish pond pony pool poppy porch portrait postage potato pottery pouch powder
    power prairie prince prism prize problem profit promise proof proud public pudding puddle
    pulse pumpkin pupil puppet puppy purse puzzle pyramid quail quality quarry quartz queen quest
    quick quiet quill quilt quiz rabbit raccoon race radar radio raft rail rainbow raisin ranch
    range rapid raven ray razor reason record reef region remedy reptile rescue reward rhythm
    ribbon rice rich riddle ring ripple river road robe robin rock rocket roof room rope rose
    rough round route royal ruby rug ruler rumor runner rural rust saddle safari safe sail salad
    salmon salt sample sand sandal satin sauce sausage scale scarf scene school science scissors
    scooter scout screen script seal search season seat secret seed senior sequel series shadow
    shark sheep sheet shelf shell shield ship shirt shoe shore shoulder shovel shower shrimp sign
    silence silk singer sister sketch ski skill skin skirt sleep sleeve slice slide slim slipper
    sloth smart smile smoke smooth snack snail snake snow soap soccer sock soda sofa soft soil
    soldier solid soup south space spade spark sparrow spear spice spider spinach spiral spirit
    spoon sport spring sprout squid stable stadium staff stage stair stamp star station statue
    steam steel stem step stick still stone stool storm stove straw street strong student studio
    subway sugar suit summit sun sunrise sunset supper surface swan sweater sweet swim swing sword
    symbol syrup table tablet tail tailor talent tank taxi tea teacher temple tennis tent textile
    theater thick thin thirty thread throne thumb thunder ticket tide tiger timber tiny toast toe
    tomato ton tongue tooth topaz torch tornado tortoise total towel tower toy trader traffic
    trail train travel treasure tree trend triangle tribe trick trophy trout truck trumpet trunk
    truth tulip tuna tundra tunnel turkey turnip turtle twenty twig twin uncle under unicorn
    uniform union unique universe urban vacuum valley vanilla vapor vase vault velvet vendor
    venture verb vessel veteran victory video view village vine vinegar violet violin virtue
    vision visit voice volcano vowel voyage wagon waiter walnut walrus wand water wave wax wealth
    weasel wedding weight west whale wheat wheel whisper whistle wide wild willow wind window wine
    wing winner wire wisdom wise wizard wolf wombat wonder wood wool worker worm wrist writer
    yacht yard yogurt young zebra zinc zone zoo
    """
)

# Words of the grammar's own sentences. Most are single tokens, whose letters have to be learnt by
# heart: training spells every one of them, and tests do without them.
SPEECH = words_of(
    """
    able about action active add address advice again age aged all and animal answer answered
    apache api apples are around array ask autumn away axion base best black blue book born boss
    bot brief briefly brown bye calc call can capital celsius chat check chess choose ciao city
    clear client cloudy coat code cold colombia color colors comes command complete compute
    connect continue convert cook cost could count country create current data date day define
    degrees demo did divide divided division does dog doing down draw dream dreams eat eight
    eleven else email embed endpoint engine engines enum equation error essay eval evaluate
    evening every exist explain expr fact false far favorite feel fetch find first five fives fix
    foggy for forecast format formula found four free french friendly friends from front function
    future game get give given going good goodbye grass gravity gray green haiku happy has have
    health healthy hello help helped helpful hey history hotel how http human humidity ideas input
    integer into invalid item items its joke key kind king know language large later laugh launch
    learning left let letter letters library life like list listen listens live location look
    lookup lot love machine make makes many market math mean meaning medium meet messages method
    metrics minus model models moon more morning mother much multiply music name names need nested
    news night nine none not now num number numbers object ocean old one only open openai operator
    orange other out own package path people perform person pet pink place plan play please plus
    poem port price product program prompt purple python query rain raining rainy rank recipe red
    remember request required rerank response result return returns reverse reversed rhymes right
    robot root run running runs sad say sea second see send sends serve server serves set seven
    short should show silver simple sing six size skills sky small snowy software solve some song
    sorts source speak spell spelled square squared start state stock stormy story stream strict
    string students subtract sum summer sunny support supports system tags take talk talking
    target teach team tell temp ten tens test text thank thanks that the there these things think
    this three time times title today together token told tomorrow tool tools town trip true turn
    twelve two twos type unit units unknown url use used useful user users value values version
    very want warm was weather welcome well what when where which white who why will windy winter
    with won word words work world write wrote year yellow yes you your yourself zero
    """
)

NAMES = words_of(
    """
    Ada Adam Agnes Aisha Alan Alba Alex Alice Amir Amy Ana Andrea Andrew Anika Anna Anton Arthur
    Astrid Ava Bart Beatriz Bella Ben Boris Bruno Camila Carla Carlos Carmen Chen Clara
    Daisy Daniel David Diana Diego Dora Edgar Elena Eli Elif Ella Emil Emily Emma Erik Eva Fatima
    Felix Finn Fiona Frank Frida Gabriel Georg Grace Greta Hana Hanna Hans Hassan Helen Henry Hugo
    Ibrahim Ida Igor Ines Ingrid Irene Iris Isaac Ivan Jack Jacob James Jana Jane Jasper Jin Joan
    Joel John Jonas Jorge Jose Julia Julian Karim Kate Kenji Klara Kofi Kurt Lara Lars Laura Lea
    Leo Leon Lily Lina Linus Lisa Louis Lucas Lucia Luis Luna Maja Marco Maria Marie Mark Marta
    Martin Mateo Max Maya Mei Mia Milan Milo Mina Mira Mona Nadia Naomi Nico Nina Noah Nora Olga
    Oliver Olivia Omar Oscar Otto Pablo Paul Paula Pedro Peter Petra Priya Rafael Raj Rania Raul
    Rita Robert Rosa Ruben Ruth Sami Samuel Sara Sean Simon Sofia Sonja Stella Sven Tara Theo
    Thomas Tina Tom Tomas Uma Ursula Vera Victor Viktor Vincent Wei Willem Xavier Yara Yuki Yusuf
    Zara Zoe
    """
)

CITIES = (
    *words_of(
        """
    Accra Algiers Amman Amsterdam Ankara Athens Atlanta Austin Bangkok Barcelona Basel Beijing
    Beirut Belfast Belgrade Berlin Bern Bogota Bologna Bonn Bordeaux Boston Bremen Brisbane
    Brussels Bucharest Budapest Cairo Calgary Caracas Chicago Cologne Copenhagen Cork Dakar Dallas
    Delhi Denver Detroit Doha Dresden Dubai Dublin Dundee Florence Geneva Genoa Ghent Glasgow
    Gothenburg Graz Hamburg Hanoi Havana Helsinki Houston Istanbul Jakarta Kampala Karachi Kiev
    Krakow Kyoto Lagos Leeds Leipzig Lille Lima Lisbon Liverpool Ljubljana London Luanda Lyon
    Madrid Malaga Manchester Manila Marseille Melbourne Memphis Miami Milan Minsk Montreal Moscow
    Mumbai Munich Nairobi Nantes Naples Osaka Oslo Ottawa Oxford Palermo Paris Perth Porto
    Prague Quito Reykjavik Riga Rome Rotterdam Salzburg Santiago Sapporo Seattle Seoul Seville
    Shanghai Singapore Sofia Stockholm Sydney Taipei Tallinn Tehran Tirana Tokyo Toronto Tunis
    Turin Utrecht Valencia Vancouver Venice Verona Vienna Vilnius Warsaw Wellington Zagreb Zurich
    """
    ),
    "Buenos Aires",
    "Cape Town",
    "Hong Kong",
    "Kuala Lumpur",
    "Las Vegas",
    "Los Angeles",
    "Mexico City",
    "New Delhi",
    "New Orleans",
    "New York",
    "Rio de Janeiro",
    "San Diego",
    "San Francisco",
    "Sao Paulo",
    "Tel Aviv",
)

_CONSONANTS = "bcdfghjklmnpqrstvwxyz"
_VOWELS = "aeiou"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def invented_word(rng: Random, shortest: int = 3, longest: int = 8) -> str:
    """A word that nobody has seen: mostly pronounceable, sometimes any letters at all.

    Inventing words teaches a skill such as spelling as a rule instead of as a list.
    """
    length = rng.randint(shortest, longest)
    if rng.random() < 0.35:
        return "".join(rng.choices(_LETTERS, k=length))
    letters: list[str] = []
    kind = rng.choice((_CONSONANTS, _VOWELS))
    while len(letters) < length:
        letters.append(rng.choice(kind))
        if rng.random() < 0.15:  # a double letter or a cluster, as in "butter" and "stone"
            letters.append(rng.choice((letters[-1], rng.choice(kind))))
        kind = _VOWELS if kind is _CONSONANTS else _CONSONANTS
    return "".join(letters[:length])
