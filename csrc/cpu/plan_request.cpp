// What somebody asks of a plan, as text.
#include <sstream>
#include <stdexcept>

#include "plan.h"

namespace fused_lstm::cpu {
namespace {

[[noreturn]] void refuse(const std::string& word) {
  throw std::invalid_argument(
      "expected a plan such as 'directions=1 rows=2 units=1 fold=0 chunk=4 algorithm=panels "
      "in_place=0' (any of these, groups and chunk at least 1, fold and in_place 0 or 1, algorithm "
      "dot or panels), got '" +
      word + "'");
}

int64_t number(const std::string& word, const std::string& value, int64_t least, int64_t most) {
  size_t end = 0;
  int64_t result = 0;
  try {
    result = std::stoll(value, &end);
  } catch (const std::exception&) {
    refuse(word);
  }
  if (end != value.size() || result < least || result > most) refuse(word);
  return result;
}

}  // namespace

PlanRequest PlanRequest::parse(const std::string& text) {
  constexpr int64_t kMostGroups = 1 << 16, kMostSteps = INT32_MAX;  // of a chunk: all there are
  PlanRequest request;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    if (equals == std::string::npos) refuse(word);
    const std::string name = word.substr(0, equals), value = word.substr(equals + 1);
    if (name == "algorithm") {
      if (value != "dot" && value != "panels") refuse(word);
      request.algorithm = value == "dot" ? Algorithm::dot : Algorithm::panels;
    } else if (name == "fold") {
      request.fold = number(word, value, 0, 1) == 1;
    } else if (name == "in_place") {
      request.in_place = number(word, value, 0, 1) == 1;
    } else if (name == "chunk") {
      request.chunk = number(word, value, 1, kMostSteps);
    } else if (name == "directions") {
      request.directions = int(number(word, value, 1, 2));
    } else if (name == "rows") {
      request.rows = int(number(word, value, 1, kMostGroups));
    } else if (name == "units") {
      request.units = int(number(word, value, 1, kMostGroups));
    } else {
      refuse(word);
    }
  }
  return request;
}

}  // namespace fused_lstm::cpu
