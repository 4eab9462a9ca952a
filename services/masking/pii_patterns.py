# ruff: noqa: E501 - a pattern is easier to read on one line
"""Patterns of personal data, by kind. A form that other things have, too, needs a certain word next to it.

All patterns run on text whose full-width characters were replaced by narrow ones. If a pattern has a group `value`, only
that is masked, and the words around it stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, get_args

from services.masking.pii_checks import (
    digits_of,
    is_card_number,
    is_china_id,
    is_hong_kong_id,
    is_iban,
    is_ipv6,
    is_luhn,
    is_old_china_id,
    is_social_security,
    is_taiwan_id,
)

Kind = Literal[
    "credential",
    "url",
    "email",
    "medical_record",
    "passport",
    "messenger",
    "birth_date",
    "id_card",
    "bank_card",
    "plate",
    "ip",
    "phone",
    "patient",
]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
Match = re.Match[str]


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern of one kind, and the places where it is tried; it cannot match anywhere else.

    `signs`: near one of these texts; `digits`: where seven digits are close together; `dots`: at numbers with dots
    between them; `plate`: at the first character of a Chinese plate. `check` confirms a match; `reach` is the greatest
    distance from such a place to the end of the match.
    """

    kind: Kind
    pattern: re.Pattern[str]
    signs: tuple[str, ...] = ()
    digits: bool = False
    dots: bool = False
    plate: bool = False
    check: Callable[[Match], bool] | None = None
    reach: int = 320

    @property
    def has_value(self) -> bool:
        """Whether only a part of the match is masked."""
        return "value" in self.pattern.groupindex


_CASE: Final = re.IGNORECASE
# Words directly before a number that is not a person's, such as an order number.
_OTHER_NUMBER: Final = re.compile(
    r"(?:订单|单号|编号|流水|运单|快递|货号|型号|批号|序列|款号|条码|条形码|商品|发票|合同|工单|时间戳|坐标|经度|纬度|版本|"
    r"isbn|issn|ean|upc|sku|imei|doi|gtin|order|invoice|tracking|serial|part|model|item|ticket|lot|batch|"
    r"confirmation|version|commit|hash|timestamp|build|bug|issue|pmid|arxiv|catalog(?:ue)?|patent|case|"
    r"latitude|longitude|lat|lon|lng|s/n|p/n|\bpo|\bref(?:erence)?|\bts|epoch|id|bytes?|offset|size|第)"
    r"(?:[ \t]*(?:no\.?|nos\.?|number|numbers|num|code|id|#|号|码|为|是|is|was|[:：=#.]))*[ \t\"']*$",
    _CASE,
)
_VERSION_BEFORE: Final = re.compile(
    r"(?:\bv|\bver|version|release|build|firmware|driver|kernel|section|chapter|clause|article|appendix|figure|table|"
    r"oid|§|版本号?|固件|驱动|第|章|节|条|图|表|升级到|更新到|chrome/|firefox/|safari/|edge/)[ .:：]*(?:为|是|is|to)?[ ]*$",
    _CASE,
)
_VERSION_AFTER: Final = re.compile(r"[ ]?(?:版|节|章|条|beta|alpha|rc\d|release|build)", _CASE)
_IP_BEFORE: Final = re.compile(
    r"(?:(?<![a-z])ip|ip地址|address|addr|host|server|ping|dns|gateway|subnet|from|client|peer|proxy|ssh|login|src|dst|"
    r"forwarded-for|@|//|地址|服务器|网关|主机|登录|来自|访问|代理|从|由)[a-z ]{0,10}[\"' :：=为是(]*\[?$",
    _CASE,
)
_IP_AFTER: Final = re.compile(r":[0-9]{2,5}(?![0-9:])|/(?:[89]|[12][0-9]|3[0-2])(?![0-9A-Za-z])")
_UNIT_AFTER: Final = re.compile(
    r"[ ]?(?:元|万|亿|块钱|美元|美金|欧元|日元|件|个|人次|股|吨|字节|[米行赞票步页倍秒]|公里|千米|毫秒|次|bytes?\b|euros?\b|dollars?\b|pounds?\b|usd\b|rmb\b|eur\b)",
    _CASE,
)


def _before(match: Match, size: int = 40) -> str:
    start = match.start("value") if "value" in match.re.groupindex else match.start()
    return match.string[max(0, start - size) : start]


def _counts_things(match: Match) -> bool:
    return _OTHER_NUMBER.search(_before(match)) is not None


_CARD_BEFORE: Final = re.compile(r"(?:card|visa|amex|jcb|discover|maestro|卡|银联)[^0-9\n]{0,12}$", _CASE)


def _is_card(match: Match) -> bool:
    digits = digits_of(match["value"])
    if not is_card_number(digits):
        # Of an issuer that is not in the list, but called a card.
        return is_luhn(digits) and len(set(digits)) > 1 and _CARD_BEFORE.search(_before(match)) is not None
    grouped = " " in match["value"] or "-" in match["value"]
    # Article numbers have thirteen digits and start like a card's.
    short = len(digits) == 13 and not re.search(r"卡|card|visa", _before(match), _CASE)
    return grouped or not (short or _counts_things(match))


def _is_ipv4(match: Match) -> bool:
    before = _before(match)
    if _VERSION_BEFORE.search(before) or _VERSION_AFTER.match(match.string, match.end()):
        return False
    octets = [int(octet) for octet in match["value"].split(".")]
    # The address of a machine for itself, and masks of nets, identify no one.
    if octets[0] in (0, 127) or octets[:2] == [255, 255]:
        return False
    # Four small numbers are more often a version, a section or a scale than an address; so are those that begin with one.
    if (max(octets) > 30 and octets[0] > 3) or octets[0] == 10:
        return True
    if before.endswith("[") and match.string.startswith("]", match.end()):
        return True
    return _IP_BEFORE.search(before) is not None or _IP_AFTER.match(match.string, match.end()) is not None


# Words that are written right before a number.
_GLUED: Final = re.compile(
    r"(?<![0-9a-z_/+=-])(?:tel|telephone|phone|mobile|cell|call|fax|text|sms|number|contact|whatsapp|office|home|work|"
    r"hotline|dial|to|at|me|on|is|[vw]x|wechat)$",
    _CASE,
)


def _is_phone(match: Match) -> bool:
    return not _counts_things(match) and _UNIT_AFTER.match(match.string, match.end()) is None


def _is_mobile(match: Match) -> bool:
    before = _before(match, 20)
    if before[-1:].isascii() and before[-1:].isalpha() and _GLUED.search(before) is None:
        return False
    return _is_phone(match)


def _is_plain_phone(match: Match) -> bool:
    # Up to thirteen digits of the number and six of an extension.
    return 9 <= len(digits_of(match["value"])) <= 19 and _is_phone(match)


_IDS_HEADER: Final = re.compile(r"[> ]*(?:[\w-]*Message-ID|In-Reply-To|References)\s*:", _CASE)
_ARTICLE_BEFORE: Final = re.compile(r"(?:\barticles?|\bmsgid|\bmessage)[ \t]*<$", _CASE)
_MAX_HEADER_LINES: Final = 16


def _is_message_id(match: Match) -> bool:
    """Whether it stands in a header of ids, or on a line that continues one, or after "In article"."""
    text = match.string
    if _ARTICLE_BEFORE.search(text[max(0, match.start() - 16) : match.start()]):
        return True
    end = match.start()
    for _ in range(_MAX_HEADER_LINES):
        line = text.rfind("\n", max(0, end - 400), end) + 1
        if _IDS_HEADER.match(text, line, end):
            return True
        # A header continues on lines that begin with white space.
        if line == 0 or text[line : line + 1] not in (" ", "\t"):
            return False
        end = line - 1
    return False


_PLACEHOLDER: Final = re.compile(
    r"[*xX.•·_-]+$|[<{\[(]|%[sdr({]|\$(?:[{(]|\w+$)|(?:none|null|nil|undefined|true|false|required|optional|empty|string|str|yes|no|your\w*|"
    r"password|passwd|secret|token|example|changed?|reset|expired|incorrect|invalid|wrong|input|get\w*|os\.\w+|self\.\w+|"
    r"self|env|request|config|settings|len|hash\w*)\b(?![-_@!#$%0-9])",
    _CASE,
)


def _is_secret(match: Match) -> bool:
    value = match["value"]
    if _PLACEHOLDER.match(value):
        return False
    # After `=` any word is a credential; after a colon or in a sentence, only one that is not letters alone.
    return "=" in match["sign"] or any(not char.isalpha() for char in value)


def _is_glued_secret(match: Match) -> bool:
    value = match["value"]
    if _PLACEHOLDER.match(value) or not any(char.isdigit() for char in value):
        return False
    # "密码6-16位" says how long it must be.
    return re.match(r"[ ]?[位个次字年月日天分小时倍种级层]", match.string[match.end() :][:2]) is None


def _is_account(match: Match) -> bool:
    """Whether a word after the name of a messenger is an account there: it is called one, or looks like one."""
    sign, value = match["sign"].strip(" \t"), match["value"]
    if match["cue"].lower() in ("vx", "wx") and not match["sign"]:
        return False
    if match["label"] or sign.removeprefix("is").strip():
        return True
    return not value[0].isdigit() and any(char.isdigit() or char == "_" for char in value)


def _is_birth_date(match: Match) -> bool:
    # Names end on 生, too: 陈方安生于1月5日抵京.
    return not match["cue"].endswith("生于") or re.search("[0-9]{4}|年", match["value"]) is not None


def _is_key(match: Match) -> bool:
    value = match["value"]
    return not _PLACEHOLDER.match(value) and any(char.isdigit() for char in value)


def _is_patient(match: Match) -> bool:
    if match["sure"] is not None or match["sex"] is not None or match["age"] is not None:
        return True
    return match["name"] not in _NO_NAMES and match["name"][0] not in _UNSURE_SURNAMES


_SURNAMES: Final = (
    "王李张刘陈杨黄赵周吴徐孙朱马胡郭林何高梁郑罗宋谢唐韩曹许邓萧冯曾程蔡彭潘袁于董余苏叶吕魏蒋田杜丁沈姜范江傅钟卢汪戴崔任陆廖"
    "姚方金邱夏谭韦贾邹石熊孟秦阎薛侯雷白龙段郝孔邵史毛常万顾赖武康贺严尹钱施牛洪龚汤陶黎温莫易樊乔文安殷颜庄章鲁倪庞邢俞翟蓝聂"
    "齐向申葛柴伍覃骆关焦柳欧祝纪尚毕耿芦左季管符辛苗詹曲靳祁路涂兰甘裴梅童翁霍游阮尤岳柯牟滕谷舒卜成饶宁凌盛查单冉鲍华包屈房喻"
)
_UNSURE_SURNAMES: Final = frozenset("于曾何高方常白易安温向成单华包关路房文万严黄宁左管游")
_NO_NAMES: Final = frozenset(
    ("马上", "任何", "周围", "康复", "夏季", "江南", "金额", "史上", "全部", "石膏", "余下", "钟情", "陈述", "陈诉")
)
# With at least two colons: with one it is a time of day.
_IPV6: Final = re.compile(
    r"(?<![0-9A-Za-z:.])(?P<value>[0-9A-Fa-f]{1,4}:(?:(?:[0-9A-Fa-f]{1,4}:){1,6}(?::?[0-9A-Fa-f]{1,4}){1,6}"
    r"|:[0-9A-Fa-f]{1,4}(?::?[0-9A-Fa-f]{1,4}){0,5}))(?![0-9A-Za-z:])"
)
PROVINCES: Final = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"
"""First characters of Chinese plates."""
# Between a word and its value: what closes the word (JSON, Markdown), what joins them, what opens the value.
_CLOSE: Final = r"[\"'`*_)\]】」”’]{0,3}"
_OPEN: Final = r"[\"'`*_(\[【《「“‘<]{0,3}[ \t]{0,2}"
_JOIN: Final = r"[ \t]{0,8}(?:(?:是|为|is|was|reads|are|the)[ \t]{1,3}|是|为){0,2}(?:[:=#|]|->|=>){0,2}[ \t]{0,8}"
_LINK: Final = _CLOSE + _JOIN + _OPEN
_NUMBER: Final = r"(?:[)\"' _-]{0,2}(?:numbers?|num|nos?|id|code|#|编号|号码|号|卡号)\.?){0,2}"
_COUNTRY: Final = r"(?:[ ]?\([A-Za-z \u4e00-\u9fff]{2,16}\))?"
_MONTH: Final = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|"
    r"Nov(?:ember)?|Dec(?:ember)?)(?![a-z])\.?"
)
_YEAR: Final = r"(?:18|19|20)[0-9]{2}"
_EXTENSION: Final = r"(?:[ ]?[,;]?[ ]?(?:ext(?:ension|n)?[.:=]?|x|转(?:分机)?|分机)[ ]?[0-9]{1,6})?"
_ACCOUNT: Final = r"(?:[,，]?[ _-]?(?:my |his |her |the )?(?:号码?|id|账号|帐号|account|handle|user ?name|no\.?))?"
_PASSPORT: Final = (
    r"(?:(?=(?:[A-Z]{0,3}[0-9]){4})[A-Z0-9]{6,11}|[A-Z]{1,2}[ -][0-9]{6,8}|[0-9]{3} [0-9]{3} [0-9]{3})(?![0-9A-Za-z])"
)
_DATE: Final = (
    rf"(?:{_YEAR}[-/. ]?(?:年[ ]?)?(?:1[0-2]|0?[1-9])(?:[-/.]|[ ](?=[0-9]))?(?:月(?:[ ](?=[0-9]))?)?(?:(?:[12][0-9]|3[01]|0?[1-9])日?)?(?![0-9])"
    rf"|[0-3]?[0-9][-/.][0-3]?[0-9][-/.](?:{_YEAR}|[0-9]{{2}})(?![0-9])"
    rf"|[0-3]?[0-9][-/. ]{_MONTH}[-/. ](?:{_YEAR}|[0-9]{{2}})(?![0-9])"
    rf"|{_MONTH}[ ](?:the )?[0-3]?[0-9](?:st|nd|rd|th)?(?:,?[ ]{_YEAR}|(?![0-9]))"
    rf"|{_MONTH},?[ ]{_YEAR}(?![0-9])"
    r"|(?:1[0-2]|0?[1-9])月[ ]?(?:[12][0-9]|3[01]|0?[1-9])[日号]"
    r"|[一二三四五六七八九〇零○]{4}年(?:[一二三四五六七八九十]{1,2}月(?:[一二三四五六七八九十]{1,3}[日号])?)?"
    rf"|[0-3]?[0-9](?:st|nd|rd|th)?[ ](?:day )?(?:of[ ])?{_MONTH}(?:,?[ ]{_YEAR}|(?![A-Za-z])))"
)
# fmt: off
_RULES: Final[tuple[Rule, ...]] = (
    # --- credentials
    Rule("credential", re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?:[^-]|-(?!----BEGIN)){0,20000}?-----END [A-Z ]{0,30}PRIVATE KEY-----", re.DOTALL), ("PRIVATE KEY",), reach=25_000),
    Rule("credential", re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}(?![A-Za-z0-9])"), ("AKIA", "ASIA", "ABIA", "ACCA")),
    Rule("credential", re.compile(r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{22,255}|glpat-[\w-]{20,64}|xox[abeoprs]-[A-Za-z0-9-]{10,200}|AIza[\w-]{35}|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,128}|sk-(?:proj-|ant-|or-)?[\w-]{20,200}|hf_[A-Za-z0-9]{30,40}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,250}|LTAI[A-Za-z0-9]{12,30}|AKID[A-Za-z0-9]{13,40}|ya29\.[\w-]{20,300}|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}|dop_v1_[a-f0-9]{64}|sq0(?:atp|csp)-[\w-]{22,43}|AGE-SECRET-KEY-1[0-9A-Z]{58}|SG\.[\w-]{16,32}\.[\w-]{16,64})(?![A-Za-z0-9])", re.ASCII), ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox", "AIza", "_live_", "_test_", "sk-", "hf_", "npm_", "pypi-", "SG.", "LTAI", "AKID", "ya29.", "shpat_", "shpca_", "shppa_", "shpss_", "dop_v1_", "sq0", "AGE-SECRET-KEY")),
    Rule("credential", re.compile(r"(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{4,}\.[\w-]{8,}", re.ASCII), ("eyJ",), reach=4000),
    Rule("credential", re.compile(r"://[^\s/:@<>\"']{1,64}:(?P<value>[^\s/@<>\"']{1,128})@", re.ASCII), ("://",), check=lambda match: _PLACEHOLDER.fullmatch(match["value"]) is None),
    Rule("credential", re.compile(r"\b(?:Bearer|Basic)[ ]+(?P<value>[A-Za-z0-9_\-.+/=]{16,512})"), ("Bearer", "Basic"), check=_is_key),
    Rule("credential", re.compile(rf"(?:pass(?:word|wd|phrase|code)?|pwd|密码|口令){_CLOSE}(?P<sign>[ ]*(?:[:=]>?|(?:is|was|是|为)[:=]?)[ ]*)(?:[*_`]{{1,2}}[ ])?[\"'“‘`【「]?(?P<value>(?:[!#$%()*+\-./0-9:=?@A-Z\[\]^_`a-z{{|}}~]|&(?!\w+=)){{4,64}})(?<![.?:)`])", _CASE), ("passw", "passph", "passc", "pass:", "pass=", "pass is", "pass\"", "pwd", "密码", "口令"), check=_is_secret),
    # A password right after its Chinese word
    Rule("credential", re.compile(r"(?:密码|口令|授权码)[ ]?(?P<value>[0-9A-Za-z@#$%](?:[!#$%*+\-./0-9=?@A-Z^_a-z~]){5,63})(?<![.?!])"), ("密码", "口令", "授权码"), check=_is_glued_secret),
    Rule("credential", re.compile(rf"(?:api[_ -]?key|secret[_ -]?(?:access[_ -]?)?key|access[_ -]?(?:key(?:[_ -]?id)?|token)|auth[_ -]?token|client[_ -]?secret|secret|token|session[_-]?id|sess(?:ion)?id|密钥|令牌){_CLOSE}[ ]*(?:[:=]>?|是|为|is)[ ]*(?:[*_`]{{1,2}}[ ])?[\"'“‘`]?(?P<value>[A-Za-z0-9_\-+/=.~]{{12,512}})", _CASE), ("pi_key", "pi-key", "pikey", "pi key", "secret", "token", "ess_key", "ess key", "ess-key", "esskey", "sessionid", "session_id", "session-id", "sessid", "密钥", "令牌"), check=_is_key),
    Rule("credential", re.compile(rf"(?:验证码|校验码|动态码|确认码|(?<![0-9A-Za-z+/])(?:OTP|(?:verification|security|one[ -]time|login|auth(?:entication|orization)?|2FA)[ _-](?:pass)?code)){_LINK}(?P<value>[0-9]{{4,8}}|[0-9]{{3}}[ -][0-9]{{3}})(?![0-9A-Za-z]|[ ]?[位个秒分])", _CASE), ("验证码", "校验码", "动态码", "确认码", "otp", "code")),
    Rule("credential", re.compile(r"(?<![A-Za-z])(?:PIN(?:码|[ _-]?(?:code|number))?|CVV2?|CVC2?)[\"']?[ ]*(?:[:=]|(?:is|was|是|为)[:=]?)[ ]*[\"']?(?P<value>[0-9]{3,8})(?![0-9A-Za-z])", _CASE), ("pin", "cvv", "cvc")),
    # --- addresses of the net
    Rule("url", re.compile(r"(?:(?:https?|ftp)://|(?<![\w.@-])www\.(?=[\w-]+\.))[^\s<>\"'\u3000-\u303f\u3400-\u9fff\uff00-\uffef]+(?<![.,;:!?)\]])"), ("://", "www.")),
    Rule("email", re.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+'-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"), ("@",), check=lambda match: not _is_message_id(match)),
    Rule("email", re.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@[\u4e00-\u9fffA-Za-z0-9-]{1,20}\.(?:公司|中国|中國|网络|網絡|网址|在线|商城|网店|集团|香港|台湾|台灣)"), ("@",)),
    Rule("email", re.compile(r"(?<![\w.])[A-Za-z0-9][\w.+-]{0,63}[ ]?[\[({<](?:at|AT|@)[\])}>][ ]?[A-Za-z0-9-]{1,63}(?:[ ]?(?:[\[({<](?:dot|DOT)[\])}>]|\.)[ ]?[A-Za-z0-9-]{2,24}){1,4}", re.ASCII), ("(at)", "[at]", "{at}", "<at>", "(@)", "[@]")),
    Rule("email", re.compile(r"(?<![\w.])[A-Za-z0-9][\w.+-]{0,63} (?:at|AT) [A-Za-z0-9-]{2,63}(?: (?:dot|DOT) [A-Za-z0-9-]{2,24}){1,4}(?![\w])", re.ASCII), (" dot ",)),
    # --- numbers with their word
    Rule("medical_record", re.compile(rf"(?<!著作权)(?<!版权)(?<!商标)(?<!产权)(?<!注册)(?:病历|病案|住院|门诊|急诊|就诊卡?|诊疗卡?|挂号|检查|检验|体检|病人|患者|登记|病理|医保卡?|社保卡?)(?:编号|号码|号|ID){_LINK}(?P<value>[A-Za-z]{{0,4}}-?[0-9][0-9A-Za-z-]{{3,19}})(?![0-9A-Za-z])"), ("病历", "病案", "住院", "门诊", "急诊", "就诊", "诊疗", "挂号", "检查", "检验", "体检", "病人", "患者", "登记", "病理", "医保", "社保")),
    Rule("medical_record", re.compile(rf"(?<![0-9A-Za-z+/])(?:MRN|(?:medical|health|patient|hospital|clinical)[ _-]?(?:record|chart|file)|patient[ _-]?(?:id(?:entifier)?|no|number)|(?:hospital|chart|NHS|medicare|medicaid|health[ _-](?:card|insurance)|encounter|admission|accession|(?:in|out)patient)(?=[ _-]?(?:no|num|id|#|[:=])|[ ][0-9]{{3}})){_NUMBER}{_LINK}(?P<value>[A-Z]{{0,4}}-?[0-9](?:[0-9A-Z]|[- ](?=[0-9])){{4,19}})(?![0-9A-Za-z])", _CASE), ("mrn", "edical", "ealth", "patient", "ospital", "linical", "chart", "nhs", "edicare", "edicaid", "ncounter", "dmission", "ccession")),
    Rule("passport", re.compile(rf"(?:护照|通行证|台胞证|回乡证|旅行证|(?<![A-Za-z])passports?){_COUNTRY}{_NUMBER}{_COUNTRY}{_LINK}(?P<value>{_PASSPORT})", _CASE), ("护照", "通行证", "台胞证", "回乡证", "旅行证", "passport")),
    Rule("passport", re.compile(r"(?<![0-9A-Za-z])(?P<value>[A-Z]{1,2}[0-9]{7,8})(?=[ ]?(?:号|\()?的?(?:护照|passport))", _CASE), ("护照", "passport")),
    Rule("messenger", re.compile(rf"(?P<cue>微信|薇信|威信|徽信|V信|(?<![A-Za-z])(?:wechat|weixin)|(?<![0-9A-Za-z+/=_-])[WV]X)(?P<label>{_ACCOUNT})(?P<sign>{_LINK})(?P<value>[A-Za-z][-_A-Za-z0-9]{{5,19}}|[1-9][0-9]{{5,9}})(?![-_A-Za-z0-9@])", _CASE), ("微信", "薇信", "威信", "徽信", "v信", "wechat", "weixin", "vx", "wx"), check=_is_account),
    Rule("messenger", re.compile(rf"(?:微信|wechat|weixin){_ACCOUNT}{_CLOSE}[ ]*[:：][ ]*{_OPEN}(?P<value>[A-Za-z][-_A-Za-z0-9]{{3,4}})(?![-_A-Za-z0-9@.]|[ ]+[A-Za-z])", _CASE), ("微信", "wechat", "weixin")),
    # Asked and answered
    Rule("messenger", re.compile(r"(?:微信|wechat|weixin)[^\n?]{0,8}\?[\"'”’ \t\n]{0,4}[^\n?]{0,8}?(?:it'?s|it is|是|[:：])[ ]?[\"'“‘]?(?P<value>(?=[A-Za-z_-]*[0-9_])[A-Za-z][-_A-Za-z0-9]{5,19})(?![-_A-Za-z0-9@])", _CASE), ("微信", "wechat", "weixin")),
    Rule("messenger", re.compile(r"(?:(?<![A-Za-z0-9])[+加]?V|薇[❤♥信]?)[ ]*[:：][ ]*(?P<value>[A-Za-z][-_A-Za-z0-9]{5,19})(?![-_A-Za-z0-9@.(])", _CASE), ("v:", "v :", "薇"), check=lambda match: any(char.isdigit() for char in match["value"])),
    Rule("messenger", re.compile(rf"(?:(?<![0-9A-Za-z+/])QQ|扣扣|企鹅号|(?<=加)Q)[ _-]?(?:号码?|群号?|账号|帐号|number|no\.?|id)?(?:{_LINK}|[\u4e00-\u9fff]{{0,4}}[ ]?[:：][ ]?)(?P<value>[1-9][0-9]{{4,10}})(?![0-9A-Za-z])", _CASE), ("qq", "扣扣", "企鹅号", "加q")),
    Rule("birth_date", re.compile(
        r"(?P<cue>出生(?:日期|年月日?|时间|于)?|生日|生于|诞生于?|诞辰|(?<![A-Za-z])(?:DOB|D\.O\.B\.?)|dates?[ _-]of[ _-]birth|birth[ _-]?(?:date|day)|b-?day(?:'s)?|(?<![A-Za-z])born)"
        rf"{_CLOSE}(?:[ \t]{{0,8}}(?:是|为|is|was|on|in|the|[:=|])){{0,3}}[ \t]{{0,8}}{_OPEN}(?P<value>{_DATE})", _CASE),
        ("出生", "生日", "生于", "诞", "born", "of birth", "of_birth", "of-birth", "birthda", "birth_da", "birth da", "bday", "b-day", "dob", "d.o.b"), check=_is_birth_date),
    Rule("birth_date", re.compile(rf"(?<![A-Za-z0-9.])b\.[ ](?P<value>{_YEAR}-[01][0-9]-[0-3][0-9]|[0-3]?[0-9][ ]{_MONTH}[ ]{_YEAR}|{_MONTH}[ ][0-3]?[0-9],?[ ]{_YEAR})(?![0-9])"), ("b. ",)),
    Rule("birth_date", re.compile(r"(?<![0-9])(?P<value>(?:18|19|20)[0-9]{2}(?:[ ]?年[ ]?(?:1[0-2]|0?[1-9])[ ]?月(?:[ ]?(?:[12][0-9]|3[01]|0?[1-9])[ ]?[日号])?|[-/.](?:1[0-2]|0?[1-9])[-/.](?:[12][0-9]|3[01]|0?[1-9])))(?=[ ]?(?:出生|生于|生人)|生(?:[,，。；;、)）\s]|$))"), ("出生", "生于", "生人", "月生", "日生", "号生", *(f"{digit}生" for digit in "0123456789"))),
    # --- identity
    Rule("id_card", re.compile(r"(?<![0-9A-Za-z])(?P<value>[1-9][0-9]{5}[ -]?(?:18|19|20)[0-9]{2}[ -]?(?:0[1-9]|1[0-2])[ -]?(?:[0-2][0-9]|3[01])[ -]?[0-9]{3}[ -]?[0-9Xx]|[1-9][0-9]{3}(?:[ -][0-9]{4}){3}[ -][0-9][0-9Xx])(?![0-9A-Za-z])"), digits=True, check=lambda match: is_china_id(match["value"])),
    Rule("id_card", re.compile(r"(?:身份证|证件)[^0-9\n]{0,8}(?P<value>[1-9][0-9]{14})(?![0-9A-Za-z])"), ("身份证", "证件"), check=lambda match: is_old_china_id(match["value"])),
    Rule("id_card", re.compile(r"(?<![0-9A-Za-z.-])(?P<value>[0-8][0-9]{2}-[0-9]{2}-[0-9]{4})(?![0-9A-Za-z-])"), digits=True, check=lambda match: is_social_security(match["value"]) and not _counts_things(match)),
    Rule("id_card", re.compile(rf"(?<![0-9A-Za-z+/])(?:SSN|social[ _-]security|I?TIN){_NUMBER}{_LINK}(?P<value>[0-9]{{3}}[ -]?[0-9]{{2}}[ -]?[0-9]{{4}})(?![0-9])", _CASE), ("ssn", "ecurity", "tin"), check=lambda match: is_social_security(match["value"])),
    Rule("id_card", re.compile(r"(?<![0-9A-Za-z])(?P<value>[A-Z][12][0-9]{8})(?![0-9A-Za-z])"), digits=True, check=lambda match: is_taiwan_id(match["value"]) and not _counts_things(match)),
    Rule("id_card", re.compile(r"(?<![0-9A-Za-z])(?P<value>[A-Z]{1,2}[0-9]{6}\([0-9A]\))"), digits=True, check=lambda match: is_hong_kong_id(match["value"])),
    Rule("id_card", re.compile(rf"(?<![0-9A-Za-z+/])(?:national[ _-]insurance|NINO|NI){_NUMBER}{_LINK}(?P<value>[A-Z]{{2}} ?[0-9]{{2}} ?[0-9]{{2}} ?[0-9]{{2}} ?[A-D])(?![0-9A-Za-z])", _CASE), ("nsurance", "ni")),
    Rule("bank_card", re.compile(r"(?<![0-9A-Za-z])(?P<value>[A-Z]{2}[0-9]{2}(?:[ ]?[0-9A-Z]{4}){2,7}(?:[ ]?[0-9A-Z]{1,3})?)(?![0-9A-Za-z])"), digits=True, check=lambda match: is_iban(match["value"])),
    Rule("bank_card", re.compile(r"(?<![0-9A-Za-z+$€£¥-])(?<![0-9$€£¥]\.)(?P<value>[2-9][0-9]{3}(?:[ -]?[0-9]{4}){2,3}(?:[ -]?[0-9]{1,7})?|1800[0-9]{11}|3[47][0-9]{2}[ -][0-9]{6}[ -][0-9]{5}|3[0-9]{3}[ -][0-9]{6}[ -][0-9]{4})(?![0-9A-Za-z@-]|\.[0-9])"), digits=True, check=_is_card),
    Rule("plate", re.compile(rf"(?P<value>[{PROVINCES}][A-HJ-NP-Z][·•.\- ]?(?:(?=(?:[A-HJ-NP-Z]*[0-9]){{2}})[A-HJ-NP-Z0-9]{{4}}[A-HJ-NP-Z0-9挂学警港澳领]|[DF][A-HJ-NP-Z0-9][0-9]{{4}}|[0-9]{{5}}[DF]))(?![0-9A-Za-z])"), plate=True),
    Rule("plate", re.compile(rf"(?:(?i:licen[cs]e[ _-]plates?|(?:number[ _-])?plates?|(?:vehicle[ _-])?registration|reg|tag(?=[ ]?(?:no|number|#)))(?i:{_NUMBER})|车牌(?:号码?)?){_LINK}(?P<value>(?=[A-Z0-9 •·-]{{0,12}}[0-9])(?=[A-Z0-9 •·-]{{0,12}}[A-Z])[A-Z0-9]{{1,4}}[ •·-]?[A-Z0-9]{{2,4}}(?:[ •·-]?[A-Z0-9]{{1,4}})?)(?![0-9A-Za-z]|[•·-][0-9A-Za-z])"), ("plate", "registration", "reg ", "reg:", "reg.", "tag ", "tag#", "车牌")),
    # Digits alone need more than the word
    Rule("plate", re.compile(r"(?:licen[cs]e|number|registration)[ _-]plates?(?:[ ]?(?:no\.?|number|#))?[\"']?[ ]?[:=#][ ]?[\"']?(?P<value>[0-9]{1,3}[ -][0-9]{3,5}|[0-9]{4,7})(?![0-9A-Za-z-])", _CASE), ("plate",)),
    Rule("plate", re.compile(rf"(?:车牌|车号|车辆|使馆|领馆)(?:号码?)?[^0-9A-Za-z\n]{{0,6}}?(?P<value>[{PROVINCES}][A-Za-z][·•.\- ]?[A-Za-z0-9]{{4,5}}[A-Za-z0-9挂学警港澳领]|使[0-9]{{3}}·?[0-9]{{3}})(?![0-9A-Za-z])"), ("车牌", "车号", "车辆", "使馆", "领馆"), check=lambda match: sum(char.isdigit() for char in match["value"]) >= 2),
    # --- where people are reached
    Rule("ip", re.compile(r"(?<![0-9A-Za-z.])(?P<value>(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9]))(?![0-9A-Za-z]|\.[0-9])"), dots=True, check=_is_ipv4),
    Rule("ip", _IPV6, ("::",), check=lambda match: is_ipv6(match["value"])),
    Rule("ip", _IPV6, digits=True, check=lambda match: is_ipv6(match["value"])),
    # With the code of a country
    Rule("phone", re.compile(rf"(?<![0-9A-Za-z+])(?P<value>\+[1-9](?:[ ().-]{{0,2}}[0-9]){{7,14}}{_EXTENSION})(?![0-9A-Za-z])", _CASE), digits=True),
    Rule("phone", re.compile(rf"(?<![0-9A-Za-z.+-])(?P<value>00(?:[17]|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58])(?:[ ().-]{{1,2}}[0-9]{{1,8}}){{2,5}}{_EXTENSION})(?![0-9A-Za-z]|[.-][0-9])", _CASE), digits=True, check=_is_plain_phone),
    # China: mobile, landline with its area, 400 and 800
    Rule("phone", re.compile(r"(?<![0-9])(?<![0-9]\.)(?<![A-Za-z]-)(?P<value>(?:\(?(?:\+|00)?86\)?[ -]?)?1[3-9][0-9](?:(?:[ .-]?[0-9]{4}){2}|[ -][0-9]{3}[ -][0-9]{5}|[0-9][ -][0-9]{3}[ -][0-9]{4}))(?![0-9A-Za-z]|[.-][0-9])"), digits=True, check=_is_mobile),
    Rule("phone", re.compile(r"(?<![0-9A-Za-z.+-])(?P<value>(?:(?:\+|00)86[ -]?)?\(?0?(?:10|2[0-57-9]|[3-9][0-9]{2})\)?[ -]?[2-9][0-9]{2,3}[ -]?[0-9]{4}(?:[ ]?(?:-|转(?:分机)?|分机|,?[ ]?ext\.?|x)[ ]?[0-9]{1,6})?)(?![0-9A-Za-z]|[.-][0-9])", _CASE), digits=True, check=lambda match: re.match(r"\(?0|\+", match["value"]) is not None and _is_plain_phone(match)),
    Rule("phone", re.compile(r"(?<![0-9A-Za-z.-])(?P<value>[48]00[ -]?[0-9]{3,4}[ -]?[0-9]{3,4})(?![0-9A-Za-z]|[.-][0-9])"), digits=True, check=lambda match: len(digits_of(match["value"])) == 10 and _is_phone(match)),
    Rule("phone", re.compile(rf"(?:电话|座机|固话|热线|传真|来电|致电|拨打|联系方式|(?<![A-Za-z])(?:tel(?:ephone)?|phone|fax|contact|call|text|dial))(?:[. _-]?(?:号码?|no\.?|numbers?))?\.?{_CLOSE}[ ]{{0,4}}(?:是|为|is|me at|us at|me on|at|on)?[ ]{{0,4}}[:=：|]?[ ]{{0,4}}{_OPEN}(?P<value>[2-9][0-9]{{2,3}}[- ]?[0-9]{{4}}|[2-9][0-9]{{9}}|0[1-9][0-9]{{7,10}})(?![0-9A-Za-z]|[.-][0-9]|[ ][0-9]{{3,4}}(?![0-9]))", _CASE), digits=True, check=_is_phone),
    # The second of two
    Rule("phone", re.compile(r"(?:电话|座机|热线|传真)[^0-9\n]{0,4}[0-9()-]{7,16}[、,，/和或 ]{1,2}(?P<value>(?:\(?0[0-9]{2,3}\)?[ -]?)?[2-9][0-9]{2,3}[- ]?[0-9]{4})(?![0-9A-Za-z]|[.-][0-9])"), digits=True, check=_is_phone),
    # Ten digits, in a sentence about calling
    Rule("phone", re.compile(r"(?:(?<![A-Za-z])(?:tel|phone|fax|contact|call(?:er|ing)?|text|sms|dial|cell|mobile|ring|reach|whatsapp|hotline|voicemail)|(?:my|his|her|our|their|your|new|old|phone) number|number'?s)(?![a-z]{3})[^0-9\n]{0,20}(?<![0-9A-Za-z.+$/-])(?P<value>[2-9][0-9]{2}[2-9][0-9]{6})(?![0-9A-Za-z]|[.-][0-9])", _CASE), digits=True, check=_is_phone),
    # North America; a word before it may be glued to it
    Rule("phone", re.compile(r"(?<![0-9])(?<![0-9][.-])(?:(?<![0-9A-Za-z.])|(?<=[a-z]{2})|(?<=[A-Z]{4})|(?<=[a-z]{3}:)|(?<=[A-Za-z]\.))(?P<value>(?:(?:\+|00)?1[ .-])?(?:\([2-9][0-9]{2}\)[ -]?|[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4}(?:[ ]?,?[ ]?(?:[Xx]|[Ee]xt(?:ension|n)?[.:]?)[ ]?[0-9]{1,6})?)(?![0-9]|[A-Za-z](?![a-z]{2})|[-][0-9]|\.[0-9])"), digits=True, check=_is_phone),
    Rule("phone", re.compile(r"(?<![0-9A-Za-z])(?P<value>001[ -][2-9][0-9]{2}[ -][0-9]{3}[ -][0-9]{4})(?![0-9A-Za-z])"), digits=True),
    # Britain, France, Japan, Australia, Germany: a zero, the area, groups
    Rule("phone", re.compile(r"(?<![0-9A-Za-z.+/:-])(?P<value>\(?0[1-9][0-9]{1,3}\)?(?:[ -][0-9]{3,8}){1,3}|(?<![0-9] )0[1-9](?:[ .][0-9]{2}){4}(?! [0-9])|0[1-9][ -][0-9]{4}[ -][0-9]{4}|0[789]0-?[0-9]{4}-?[0-9]{4}|\(0[2378]\)[ .]?[0-9]{4}[ .]?[0-9]{4}|07[0-9]{9}|07[0-9]{3} [0-9]{6})(?![0-9A-Za-z]|[.-][0-9])"), digits=True, check=_is_plain_phone),
    # --- medical reports
    Rule("patient", re.compile(
        rf"(?P<value>(?:患者|病人)(?:(?P<sure>(?:姓名)?[ ]*[:：][ ]*|姓名[ ]*)(?=[\u4e00-\u9fff])|[ ]?)(?P<name>(?:[{_SURNAMES}]|欧阳|上官|司马|诸葛|司徒|夏侯)[\u4e00-\u9fff×某]{{1,2}}?)"
        r"(?:先生|女士|小姐)?(?:[,，、 ][ ]*(?:性别[:：]?)?(?P<sex>男|女)性?)?(?:[,，、 ][ ]*(?:年龄[:：]?)?(?P<age>[0-9]{1,3})[ ]?岁)?)(?=[,，。；;、()（）\s]|$|因|主诉|于[0-9]|入院|就诊|住院)"), ("患者", "病人"), check=_is_patient),
    Rule("patient", re.compile(r"\b(?P<value>[Pp]atient(?:'s)?(?: [Nn]ame)?[ ]*:[ ]*[A-Z][a-z'-]+(?: [A-Z]\.?)?(?: [A-Z][a-z'-]+){1,2})"), ("atient",)),
)
# fmt: on


def rules_of(kinds: frozenset[str]) -> tuple[Rule, ...]:
    """The rules of some kinds, the strictest first: later rules skip what an earlier one has found."""
    return tuple(rule for rule in _RULES if rule.kind in kinds)
