// The types of a dashboard's JSON, from the schema that Grafana publishes: those of each panel, and those of everything
// around the panels. The schema itself is laxer in two places: there, `options` and `custom` may have any other key.
import type * as schema from '@grafana/schema'
import type * as bargauge from '@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen'
import type * as logs from '@grafana/schema/dist/esm/raw/composable/logs/panelcfg/x/LogsPanelCfg_types.gen'
import type * as nodegraph from '@grafana/schema/dist/esm/raw/composable/nodegraph/panelcfg/x/NodeGraphPanelCfg_types.gen'
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen'
import type * as table from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen'
import type * as text from '@grafana/schema/dist/esm/raw/composable/text/panelcfg/x/TextPanelCfg_types.gen'
import type * as timeseries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen'

// A type as JSON has it: the members of an enumeration as their plain values.
type Plain<T> =
  T extends string ? `${T}`
  : T extends Array<infer Item> ? Array<Plain<Item>>
  : T extends object ? { [Key in keyof T]: Plain<T[Key]> }
  : T

type Defaults<Custom> = Omit<schema.FieldConfig, 'custom'> & { custom?: Partial<Custom> }

// A property that an override sets: of the field configuration, or of the panel.
type Property<Custom> =
  | { [Key in keyof schema.FieldConfig]-?: { id: Key; value: schema.FieldConfig[Key] } }[keyof schema.FieldConfig]
  | { [Key in keyof Custom & string]-?: { id: `custom.${Key}`; value: Custom[Key] } }[keyof Custom & string]

interface FieldConfigs<Custom> {
  defaults: Defaults<Custom>
  overrides: Array<{ matcher: schema.MatcherConfig; properties: Array<Property<Custom>> }>
}

// Missing options and custom fields have Grafana's defaults.
type Panel<Type extends string, Options, Custom = {}> = Plain<
  Omit<schema.Panel, 'type' | 'options' | 'fieldConfig'> & {
    type: Type
    options?: Partial<Options>
    fieldConfig?: FieldConfigs<Custom>
  }
>

export interface Panels {
  bargauge: Panel<'bargauge', bargauge.Options>
  logs: Panel<'logs', logs.Options>
  nodeGraph: Panel<'nodeGraph', nodegraph.Options>
  row: Plain<schema.RowPanel>
  stat: Panel<'stat', stat.Options>
  table: Panel<'table', table.Options, table.FieldConfig>
  text: Panel<'text', text.Options>
  timeseries: Panel<'timeseries', timeseries.Options, timeseries.FieldConfig>
}

// A dashboard without its panels. The schema leaves the query of an annotation to its data source.
type Annotation = schema.AnnotationQuery<schema.DataQuery & { expr?: string }>
export type Dashboard = Plain<Omit<schema.Dashboard, 'panels' | 'annotations'> & { annotations: { list: Annotation[] } }>
