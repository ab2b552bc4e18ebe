"""The words, names and places that the grammar fills its sentences with."""

from __future__ import annotations

from random import Random


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


WORDS = words_of(
    """
    able acid acorn actor adult agent alarm album alien amber anchor angel angle ankle answer
    apple april apron arch arena arm armor army arrow artist atom attic aunt author autumn avenue
    award axe baby back bacon badge bag baker ball balloon bamboo banana band bank barn baron
    barrel basil basin basket bat bath beach beacon bead beam bean bear beard beast beauty bed bee
    beef beetle bell belt bench berry bicycle bike bird biscuit bitter black blade blanket blaze
    block bloom blue board boat body bold bolt bone bonus book boot border bottle boulder bow bowl
    box brain branch brave bread breeze brick bride bridge bright broad bronze brook broom brother
    brown brush bubble bucket budget buffalo bug build bull bundle burger bus bush butter button
    cabin cabinet cable cactus cage cake camel camera camp canal candle candy cannon canoe canvas
    canyon cap captain car caramel carbon card cargo carpet carrot cart cartoon castle cat cattle
    cave cedar ceiling cello cement center cereal chain chair chalk chance chapter charm chart
    cheek cheese cherry chess chest chicken chief child chimney choir church circle circus city
    claw clay clean clerk clever cliff climb clock closet cloth cloud clover clown club coach coal
    coast cobra cocoa coconut coffee coin cold collar color comet comic compass concert cookie
    copper coral corn corner cotton couch cougar council county courage cousin cover cow crab
    cradle crane crater crayon cream creek cricket crisp crop cross crow crowd crown cruise crumb
    crystal cube cup curry curtain curve cushion cycle daisy damp dance danger dark dawn deal dear
    deck deer delta denim desert desk detail device dew diamond diary dinner dirt dish dive doctor
    dog doll dollar dolphin donkey door dough dove dozen dragon drama dream dress drift drill
    drink drive drum duck duke dune dust duty eagle ear early earth easel east easy echo edge
    editor eel egg elbow elder elegant elk elm ember emerald empire empty energy engine
    enjoy entry envy epic equal error escape evening event exit fabric face factory fairy falcon
    fall family famous fancy farm farmer fashion father feast feather fence fern ferry festival
    fever fiber fiction field fifty fig film finger fire fish flag flame flash flavor fleet flight
    flock flood floor flour flower fluid flute fly foam focus fog folk food foot forest fork
    formal fort forum fossil fountain fox frame freedom fresh friend frog front frost fruit fudge
    fuel funny fur future galaxy gallery game garage garden garlic gas gate gather gem general
    genius gentle ghost giant gift ginger giraffe glacier glad glass globe glove glue goat gold
    golf goose gorilla grace grain grand grape graph gravel gravity gray great green grid grill
    grin grip grove guard guest guide guitar gulf gum guppy habit hair half hall hammer hamster
    hand handle harbor hard harp harvest hat hawk hazel head heart heat heaven hedge heel height
    helmet herb herd hero heron hill hint hippo history hobby hockey hollow holly home honest
    honey hood hook horizon horn horse hospital hotel hour house human humor hundred hunter hurdle
    hut ice icon idea igloo image inch index infant ink inn insect island ivory ivy jacket jaguar
    jam jar jaw jazz jeans jelly jewel jigsaw job join journal journey joy judge juggle juice july
    jump june jungle junior jury kayak kennel kernel kettle key kind king kingdom kiss kitchen
    kite kitten kiwi knee knife knight knot koala label ladder lady lake lamb lamp lantern laptop
    large laser laugh laundry lava lawn lawyer leader leaf leather lecture legend lemon lens
    leopard lesson letter level library license lid light lily lime limit linen lion lip liquid
    lizard llama lobster local lock lodge logic lotus loud love lucky lunch lung luxury lyric
    machine magic magnet maid mail major mammal mango manner mansion maple marble march margin
    marine market mask master match matter meadow meal medal melody melon member memory menu
    merchant mercy metal meteor meter middle milk mill mimic mind mineral minor mint minute mirror
    mist mitten mixture modern moment monkey monster month moon moose mosaic moss motel moth motor
    mountain mouse mouth movie mud muffin mule muscle museum mustard mystery myth napkin narrow
    nation nature navy neck needle nephew nerve nest network nickel noble noise noodle north nose
    notebook nothing novel nurse nut oak oasis oat object oboe ocean october octopus office oil
    olive omega onion opal opera orange orbit orchard orchid order organ origin ostrich otter
    outfit oval oven owl owner oxygen oyster paddle page paint pajamas palace palm pan panda panel
    panther paper parade parcel parent park parrot party pasta pastry patch path patient pattern
    pause peach peacock peak peanut pear pearl pebble pelican pen pencil penguin pepper perfume
    person phone photo piano pickle picnic picture pie pigeon pillow pilot pine pioneer pipe
    pirate pistol pitcher pizza planet plank plant plastic plate plaza plum pocket poem poet point
    polar police polish pond pony pool poppy porch portrait postage potato pottery pouch powder
    power prairie prince prism prize problem profit promise proof proud public pudding puddle
    pulse pumpkin pupil puppet puppy purple purse puzzle pyramid quail quality quarry quartz queen
    quest quick quiet quill quilt quiz rabbit raccoon race radar radio raft rail rain rainbow
    raisin ranch range rapid raven ray razor reason recipe record red reef region remedy reptile
    rescue reward rhythm ribbon rice rich riddle ring ripple river road robe robin robot rock
    rocket roof room root rope rose rough round route royal ruby rug ruler rumor runner rural rust
    saddle safari safe sail salad salmon salt sample sand sandal satin sauce sausage scale scarf
    scene school science scissors scooter scout screen script sea seal search season seat second
    secret seed senior sequel series shadow shark sheep sheet shelf shell shield ship shirt shoe
    shore short shoulder shovel shower shrimp sign silence silk silver simple singer sister sketch
    ski skill skin skirt sky sleep sleeve slice slide slim slipper sloth small smart smile smoke
    smooth snack snail snake snow soap soccer sock soda sofa soft soil soldier solid song soup
    south space spade spark sparrow spear spice spider spinach spiral spirit spoon sport spring
    sprout square squid stable stadium staff stage stair stamp star station statue steam steel
    stem step stick still stone stool storm story stove straw stream street strong student studio
    subway sugar suit summer summit sun sunrise sunset supper surface swan sweater sweet swim
    swing sword symbol syrup table tablet tail tailor talent tank target taxi tea teacher team
    temple tennis tent textile theater thick thin thirty thread throne thumb thunder ticket tide
    tiger timber tiny title toast today toe tomato ton tongue tooth topaz torch tornado tortoise
    total towel tower toy trader traffic trail train travel treasure tree trend triangle tribe
    trick trip trophy trout truck trumpet trunk truth tulip tuna tundra tunnel turkey turnip
    turtle twenty twig twin uncle under unicorn uniform union unique universe urban vacuum
    valley value vanilla vapor vase vault velvet vendor venture verb vessel veteran victory video
    view village vine vinegar violet violin virtue vision visit voice volcano vowel voyage wagon
    waiter walnut walrus wand warm water wave wax wealth weasel wedding weight west whale wheat
    wheel whisper whistle white wide wild willow wind window wine wing winner wire wisdom wise
    wizard wolf wombat wonder wood wool word worker world worm wrist writer yacht yard year yellow
    yogurt young zebra zinc zone zoo
    """
)

# Words of the grammar's own sentences. They are single tokens, so that their letters have to be
# learnt by heart: training spells every one of them, and tests do without them.
SPEECH = words_of(
    """
    about active add address advice age aged all and animal answered api apples are around array
    ask away axion base best born boss bot brief briefly bye calc call can capital celsius chat
    check choose ciao clear client cloudy coat code colombia colors comes command complete compute
    connect continue convert cook count country create current data date day define degrees demo
    did divide divided division does doing down draw dreams eat email embed endpoint engines enum
    essay evaluate every exist explain expr fact false far favorite feel fetch first fives fix
    foggy for format formula found french friendly friends from function get give given going good
    goodbye grass haiku happy has have health healthy hello help helped helpful hey how http
    humidity ideas input integer into invalid item items its joke know language later launch
    learning left let letters life like list listen listens live location look lookup lot make
    many math mean meaning medium meet messages metrics minus model models more morning mother
    much multiply music name names need nested news night none not now number numbers old one only
    openai operator other out own package people perform pet pink place plan play please plus port
    price product program prompt python query raining rainy rank remember request required rerank
    response result return returns reverse reversed rhymes right run running runs sad say see send
    sends serve server serves set should show sing size skills snowy some sorts speak spell
    spelled squared start state stock stormy strict string students subtract sum sunny support
    supports system tags take talk talking teach tell temp tens test text thank thanks that the
    there these things think this three time times token tomorrow tool tools town true turn two
    twos type unit units unknown url use used useful user users values version very want was
    weather welcome well what when where which who why will windy winter with won words work write
    wrote you your yourself zero four five six seven eight nine ten eleven twelve again find makes
    together could else
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
    Mumbai Munich Nairobi Nantes Naples Nice Osaka Oslo Ottawa Oxford Palermo Paris Perth Porto
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
