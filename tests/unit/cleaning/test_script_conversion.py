"""Simplified and traditional Chinese: characters with several forms, and words that only seem to stand in a text."""

from __future__ import annotations

from functools import cache

import pytest

from services.cleaning.domain.recipe import OperatorSpec
from services.cleaning.engine.compiler import CompiledRecipe, compile_recipe
from services.cleaning.engine.registry import default_registry


@cache
def recipe(conversion: str) -> CompiledRecipe:
    # Reading the dictionaries takes a fifth of a second.
    return compile_recipe(default_registry(), [OperatorSpec("convert_script", {"conversion": conversion})])


def converted(text: str, conversion: str) -> str:
    return recipe(conversion).clean(text, {}).text


# One simplified character stands for several traditional ones; the words beside it decide which.
BOTH_WAYS = [
    "头发发现=頭髮發現",
    "皇后后天=皇后後天",
    "干净干部天干=乾淨幹部天干",
    "松树放松=松樹放鬆",
    "制造制度=製造制度",
    "系统联系=系統聯繫",
    "一只猫只有=一隻貓只有",
    "范围=範圍",
    "关系=關係",
    "丑时丑恶=丑時醜惡",
    "谷物山谷=穀物山谷",
    "复杂复习覆盖=複雜複習覆蓋",
    "历史日历=歷史日曆",
    "准备批准=準備批准",
    "余地=餘地",
    "冲突冲洗=衝突沖洗",
    "征求长征=徵求長征",
    "游泳旅游=游泳旅遊",
    "回来=回來",
    "几个茶几=幾個茶几",
    "表面手表=表面手錶",
    "云彩云南=雲彩雲南",
    "借口=藉口",
    "咸菜=鹹菜",
    "致密精致=緻密精緻",
    "布局=佈局",
    "尽管尽力=儘管盡力",
    "卷入=捲入",
    "划船计划=划船計劃",
    "姜汤=薑湯",
    "伙食=伙食",
    "托儿=托兒",
    "舍不得宿舍=捨不得宿舍",
    "斗争一斗=鬥爭一斗",
    "郁闷浓郁=鬱悶濃郁",
    "吁请=籲請",
    "仆人=僕人",
    "症状征兆=症狀徵兆",
    "签名抽签=簽名抽籤",
    "困难=困難",
    "叶子=葉子",
    "秋千=鞦韆",
    "少数组织学习了=少數組織學習了",
    "国内存在问题=國內存在問題",
    "公里=公里",
    "板凳老板=板凳老闆",
    "雕刻=雕刻",
    "千里之外=千里之外",
]


@pytest.mark.parametrize("pair", BOTH_WAYS)
def test_simplified_becomes_traditional_and_back(pair: str) -> None:
    simplified, _, traditional = pair.partition("=")
    assert converted(simplified, "s2t") == traditional
    assert converted(traditional, "t2s") == simplified


# OpenCC alone finds phrases across the borders of words here: 个中, 断发, 国历, 作制, 究了, 头发, 理发, 干部.
ACROSS_WORDS = [
    "在一个中国的原则下=在一個中國的原則下",
    "不断发出声音=不斷發出聲音",
    "一起英国历史上最大=一起英國歷史上最大",
    "股份合作制为主=股份合作制爲主",
    "研究了如何惩治=研究了如何懲治",
    "从头发动机器=從頭發動機器",
    "经理发票据=經理發票據",
    "全国城市制造=全國城市製造",
    "首脑参加会议=首腦參加會議",
    "时候了才开始=時候了才開始",
    "外资并产生了=外資並產生了",
    "实事的好干部=實事的好幹部",
    "多少周折=多少周折",
    "十三家私营企业=十三家私營企業",
    "农业人口占总人口=農業人口佔總人口",
    "敦促国会尽快批准=敦促國會儘快批准",
]


@pytest.mark.parametrize("pair", ACROSS_WORDS)
def test_a_phrase_across_two_words_is_not_converted(pair: str) -> None:
    simplified, _, traditional = pair.partition("=")
    assert converted(simplified, "s2t") == traditional
    assert converted(traditional, "t2s") == simplified


# With Taiwan's words: 数组 is 陣列 there, and 内存 記憶體, but not where two other words meet.
TAIWAN = [
    "少数组织学习了=少數組織學習了",
    "多数组成部分=多數組成部分",
    "人数组成=人數組成",
    "国内存在问题=國內存在問題",
    "体内存在=體內存在",
    "室内存放=室內存放",
    "攻打印度=攻打印度",
    "电视频道=電視頻道",
    "改变量刑=改變量刑",
    "人数据说很多=人數據說很多",
    "使用户外装备=使用戶外裝備",
    "直接口头答应=直接口頭答應",
    "相信息息相关=相信息息相關",
    "工程序列=工程序列",
    "课程序言=課程序言",
    "论文件数=論文件數",
    "面对象棋=面對象棋",
    "针对象征=針對象徵",
    "数组和内存=陣列和記憶體",
    "打印文件=列印檔案",
    "软件和网络=軟體和網路",
    "部分区域内=部分區域內",
    "一万用户，一=一萬使用者，一",
    "高品位图书=高品位圖書",
    "商铺内存放了=商鋪內存放了",
    "官网络绎不绝=官網絡繹不絕",
    "最高清晰度=最高清晰度",
    "首席执行官=執行長",
    "数据结构=資料結構",
    "激光打印机=雷射印表機",
    "U盘=隨身碟",
    "鼠标=滑鼠",
    "信息程序=資訊程式",
]


@pytest.mark.parametrize("pair", TAIWAN)
def test_words_of_taiwan_stand_only_where_they_are_words(pair: str) -> None:
    simplified, _, taiwan = pair.partition("=")
    assert converted(simplified, "s2twp") == taiwan


# Taiwan's 序列 is 串行 to OpenCC wherever it stands, and 執行長 has two words for it.
@pytest.mark.parametrize("pair", [pair for pair in TAIWAN if "序列" not in pair and "執行長" not in pair])
def test_words_of_taiwan_come_back(pair: str) -> None:
    simplified, _, taiwan = pair.partition("=")
    assert converted(taiwan, "tw2sp") == simplified
