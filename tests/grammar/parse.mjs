// Parses queries with the grammars of Grafana's own query editors. Reads a JSON list of {language, query} from stdin and
// writes for each: errors (the parts that do not parse), selectors ({name, matchers}), filters, and the labels it groups
// by. A matcher or a filter is [name, operator, value].
import { readFileSync } from 'node:fs'
import { parser as logql } from '@grafana/lezer-logql'
import { parser as traceql } from '@grafana/lezer-traceql'
import { parser as promql } from '@prometheus-io/lezer-promql'

function reader(query) {
  const text = node => query.slice(node.from, node.to)
  const below = (node, ...names) => {
    const found = []
    node.cursor().iterate(child => { if (names.includes(child.name)) found.push(child.node) })
    return found
  }
  const value = node => {
    const literal = text(node)
    if (literal.startsWith('`')) return literal.slice(1, -1)
    return literal.startsWith('"') ? JSON.parse(literal) : literal
  }
  // Three children in a row: name, operator, value.
  const triple = node => {
    const [name, operator, last] = [node.firstChild, node.firstChild.nextSibling, node.lastChild]
    return [text(name), text(operator), value(last)]
  }
  return { text, below, triple }
}

const READ = {
  promql(tree, { text, below, triple }) {
    return {
      selectors: below(tree, 'VectorSelector').map(node => ({
        name: node.getChild('Identifier') ? text(node.getChild('Identifier')) : '',
        matchers: below(node, 'UnquotedLabelMatcher').map(triple),
      })),
      filters: [],
      labels: below(tree, 'GroupingLabels').flatMap(node => below(node, 'LabelName').map(text)),
    }
  },
  logql(tree, { text, below, triple }) {
    return {
      selectors: below(tree, 'Selector').map(node => ({ name: '', matchers: below(node, 'Matcher').map(triple) })),
      filters: below(tree, 'LabelFilter').flatMap(node => below(node, 'Matcher', 'NumberFilter').map(triple)),
      labels: below(tree, 'Labels').flatMap(node => below(node, 'Identifier').map(text)),
    }
  },
  traceql(tree, { below, triple }) {
    const comparisons = node => below(node, 'FieldExpression').filter(each => each.getChild('FieldOp'))
    return {
      selectors: below(tree, 'SpansetFilter').map(node => ({ name: '', matchers: comparisons(node).map(triple) })),
      filters: [],
      labels: [],
    }
  },
}
const PARSERS = { promql, logql, traceql }

const answers = JSON.parse(readFileSync(0, 'utf8')).map(({ language, query }) => {
  const tools = reader(query)
  const tree = PARSERS[language].parse(query).topNode
  const errors = []
  tree.cursor().iterate(node => {
    if (node.type.isError) errors.push(`${node.from}: ${tools.text(node) || 'something is missing'}`)
  })
  return errors.length ? { errors } : { errors, ...READ[language](tree, tools) }
})
console.log(JSON.stringify(answers))
