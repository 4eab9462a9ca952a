"""Documents made by Faker, which is installed apart: some personal data and some numbers of other things in each."""

from __future__ import annotations

import importlib
import random
import sys
from typing import Any, Final

from benchmarks.peers import installed
from benchmarks.pii.scoring import Sentence, marked

PACKAGES: Final = ("faker==40.63.0",)
_LINES: Final = 8
# {kind|value} is personal data; what a line has besides comes from Faker as well.
_TEMPLATES: Final[dict[str, tuple[str, ...]]] = {
    "zh_CN": (
        "{name}的手机号是{phone}，邮箱{email}。",
        "联系人：{name}　电话：{phone}　地址：{address}",
        '{{"name": "{name}", "mobile": "{phone}", "email": "{email}"}}',
        "身份证号：{id_card}，姓名{name}，住{address}。",
        "{sentence}有事请发邮件到{email}，或者打{phone}找{name}。",
        "银行卡号{bank_card}，开户人{name}。",
        "{time} INFO 用户{user}从{ip}登录",
        "客户端{ipv6}已断开，重试3次。",
        "车牌{plate}的车主请尽快挪车。",
        "护照号码：{passport}，签发地{city}。",
        "病历号：{medical_record}，{sentence}",
        "加我微信{messenger}，备注{word}。",
        "QQ：{qq}，{sentence}",
        "{name}，{birth_date}出生，现居{city}。",
        "出生日期：{birth_date}，籍贯{city}。",
        "账号{user}，密码：{credential}，登录后请修改。",
    ),
    "en_US": (
        "{name} can be reached at {phone} or {email}.",
        "Contact: {name}, {address}, phone {phone}",
        '{{"name": "{name}", "phone": "{phone}", "email": "{email}"}}',
        "SSN: {id_card}, issued to {name}.",
        "{sentence} Please charge card {bank_card} for it.",
        "{time} INFO user {user} logged in from {ip}",
        "peer {ipv6} timed out after 3 tries",
        "License plate: {plate}, parked at {address}.",
        "Passport number {passport}, {name}.",
        "MRN: {medical_record}. {sentence}",
        "My WeChat is {messenger}, {sentence}",
        "QQ: {qq} ({word})",
        "{name} was born on {birth_date} in {city}.",
        "Date of birth: {birth_date}",
        "login {user}, password: {credential}",
        "Mail {email} before {date}.",
    ),
}
_OTHERS: Final[dict[str, tuple[str, ...]]] = {
    "zh_CN": (
        "{sentence}",
        "订单号{digits18}，金额{price}元，{date}发货。",
        "商品条码{ean}，ISBN {isbn}，库存{digits4}件。",
        "版本{version}已发布，提交{sha}。",
        "请求{uuid}耗时{digits4}ms，时间戳{epoch}。",
        "坐标{lat},{lon}，海拔{digits4}米。",
        "会议定于{date}{time}召开。",
    ),
    "en_US": (
        "{sentence}",
        "Order {digits12}, total ${price}, shipped {date}.",
        "EAN {ean}, ISBN {isbn}, stock {digits4}.",
        "Version {version}, commit {sha}.",
        "request {uuid} took {digits4} ms at {epoch}",
        "Position {lat}, {lon}; part number {part}.",
        "The meeting is on {date} at {time}.",
    ),
}


def documents(locale: str, count: int, seed: int = 20261127) -> list[Sentence]:
    """Documents of a locale (zh_CN, en_US), with what personal data each has and where."""
    place = str(installed("faker", PACKAGES))
    if place not in sys.path:
        sys.path.append(place)
    module: Any = importlib.import_module("faker")
    fake = module.Faker(locale)
    fake.seed_instance(seed)
    choose = random.Random(seed)
    made = []
    for _ in range(count):
        lines = [choose.choice(_TEMPLATES[locale]) for _ in range(_LINES // 2)]
        lines += [choose.choice(_OTHERS[locale]) for _ in range(_LINES // 2)]
        choose.shuffle(lines)
        made.append(marked("\\n".join(line.format_map(_Values(fake, choose, locale)) for line in lines)))
    return made


class _Values(dict[str, str]):
    """A new value for each name in a line."""

    def __init__(self, fake: Any, choose: random.Random, locale: str) -> None:
        super().__init__()
        self._fake, self._choose, self._chinese = fake, choose, locale == "zh_CN"

    def __missing__(self, name: str) -> str:
        value = str(getattr(self, f"_{name}")()) if hasattr(self, f"_{name}") else str(self._other(name))
        kind = {"ipv6": "ip", "qq": "messenger"}.get(name, name)
        return f"{{{kind}|{value}}}" if hasattr(self, f"_{name}") else value

    def _phone(self) -> str:
        return str(self._fake.phone_number())

    def _email(self) -> str:
        return str(self._fake.email())

    def _id_card(self) -> str:
        return str(self._fake.ssn())

    def _bank_card(self) -> str:
        number = str(self._fake.credit_card_number())
        groups = [number[place : place + 4] for place in range(0, len(number), 4)]
        return self._choose.choice(("", " ", "-")).join(groups) if len(number) == 16 else number

    def _ip(self) -> str:
        return str(self._choose.choice((self._fake.ipv4_public, self._fake.ipv4_private))())

    def _ipv6(self) -> str:
        return str(self._fake.ipv6())

    def _plate(self) -> str:
        return str(self._fake.license_plate())

    def _passport(self) -> str:
        return str(self._fake.bothify(self._choose.choice(("E########", "E?#######", "G########"))).upper())

    def _medical_record(self) -> str:
        return str(self._fake.bothify(self._choose.choice(("########", "20260#####", "M-#######"))))

    def _messenger(self) -> str:
        return str(
            self._fake.bothify(self._choose.choice(("????_####", "wx????##", "???-???##")), "abcdefghkmnpqrstwy")
        )

    def _qq(self) -> str:
        return str(self._choose.randint(10_000_000, 3_999_999_999))

    def _birth_date(self) -> str:
        day = self._fake.date_of_birth(minimum_age=1, maximum_age=95)
        forms = (
            ("{0:%Y-%m-%d}", "{0.year}年{0.month}月{0.day}日", "{0.year}/{0.month}/{0.day}")
            if self._chinese
            else ("{0:%Y-%m-%d}", "{0:%m/%d/%Y}", "{0:%B} {0.day}, {0.year}", "{0.day} {0:%b} {0.year}")
        )
        return self._choose.choice(forms).format(day)

    def _credential(self) -> str:
        return str(self._fake.password(length=self._choose.randint(8, 16), special_chars=False))

    def _other(self, name: str) -> object:
        fake, choose = self._fake, self._choose
        makers = {
            "user": fake.user_name,
            "address": lambda: fake.address().replace("\n", ", "),
            "date": lambda: fake.date_this_decade().isoformat(),
            "digits4": lambda: fake.numerify("%###"),
            "digits12": lambda: fake.numerify("%###########"),
            "digits18": lambda: fake.numerify("%#################"),
            "price": lambda: f"{choose.uniform(1, 9999):,.2f}",
            "ean": fake.ean13,
            "isbn": fake.isbn13,
            "version": lambda: f"{choose.randint(0, 20)}.{choose.randint(0, 30)}.{choose.randint(0, 30)}",
            "sha": fake.sha1,
            "uuid": fake.uuid4,
            "epoch": lambda: choose.randint(1_700_000_000_000, 1_799_999_999_999),
            "lat": fake.latitude,
            "lon": fake.longitude,
            "part": lambda: fake.bothify("??-####-####").upper(),
        }
        return makers.get(name, getattr(fake, name, None))()  # type: ignore[misc]  # a misspelt name fails here
